"""Every kind of source reads alike; every bad one is refused in one line that shows no record."""

from __future__ import annotations

import json
import math
import sys
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedaipc.config import TextSource
from fedaipc.data.reading import label_name
from fedaipc.data.records import Records
from fedaipc.data.sources import read_records
from fedaipc.errors import DataError, MissingExtra

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SECRET = "zq7private"  # stands in every bad file's records, and must be in no error
TEXTS = ("good, really", 'he said "no";\tthen left', "line one\nline two", "naïve ☕")
LABELS = ("1", "0", "1", "0")
GROUPS = ("ann", "bob", "ann", "eve")


def read(source: Path | str, group: str | None = None, **how: Any) -> Records:
    return read_records(str(source), TextSource(**how), group_column=group).all()


def refused(source: Path | str, group: str | None = None, **how: Any) -> str:
    """The error's text: one line, without a record, and no other error hangs on it."""
    with pytest.raises(DataError) as caught:
        read(source, group, **how)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
    assert "\n" not in str(error)
    assert SECRET not in str(error)
    return str(error)


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def csv_text(delimiter: str) -> str:
    quoted = ['"' + text.replace('"', '""') + '"' for text in TEXTS]
    rows = [("id", "label", "text", "who"), *zip("abcd", LABELS, quoted, GROUPS, strict=True)]
    return "\n".join(delimiter.join(row) for row in rows) + "\n"


def as_csv(folder: Path) -> Path:
    return written(folder / "data.csv", csv_text(","))


def as_excel_csv(folder: Path) -> Path:
    content = b"\xef\xbb\xbf" + csv_text(";").replace("\nb;", "\n\nb;").encode()
    return written(folder / "data.CSV", content)


def as_tsv(folder: Path) -> Path:
    return written(folder / "data.tsv", csv_text("\t"))


def as_jsonl(folder: Path) -> Path:
    rows = zip(TEXTS, (1, 0.0, "1", " 0 "), GROUPS, strict=True)
    lines = [json.dumps({"who": who, "text": t, "label": label}) for t, label, who in rows]
    return written(folder / "data.jsonl", "\n\n".join(lines))


def as_parquet(folder: Path) -> Path:
    labels = pa.array([1, 0, 1, 0], pa.int8())
    who = pa.array(GROUPS).dictionary_encode()
    pq.write_table(
        pa.table({"text": TEXTS, "x.y": [1, 2, 3, 4], "label": labels, "who": who}),
        folder / "data.parquet",
    )
    return folder / "data.parquet"


@pytest.mark.parametrize("make", [as_csv, as_excel_csv, as_tsv, as_jsonl, as_parquet])
def test_each_kind_of_file_gives_the_same_records(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = make(tmp_path)
    how = {"quoting": "csv"}
    assert read(path, **how) == Records(TEXTS, LABELS)
    assert read(path, "who", **how) == Records(TEXTS, LABELS, GROUPS)


def test_a_folder_has_one_sub_folder_per_label(tmp_path: Path) -> None:
    for label, name, text in (
        ("pos", "b.txt", "good"),
        ("neg", "a.TXT", "bad"),
        ("pos", "a.txt", "ok"),
    ):
        (tmp_path / label).mkdir(exist_ok=True)
        written(tmp_path / label / name, "\ufeff" + text + "\n")
    (tmp_path / ".hidden").mkdir()
    written(tmp_path / ".hidden" / "c.txt", "no")
    written(tmp_path / "pos" / "readme.md", "no")
    assert read(tmp_path) == Records(("bad", "ok", "good"), ("neg", "pos", "pos"))
    assert "has no column 'who'" in refused(tmp_path, "who")


def test_assets_read_bylabel_name(sentiment: Path) -> None:
    records = read("sentiment-4", "domain")
    assert records.groups is not None
    assert set(records.groups) == {"movies", "tweets", "amazon", "nyt"}
    assert set(records.labels) == {"positive", "negative"}


def test_a_model_is_no_text(minilm: Path) -> None:
    assert "is a model, not text" in refused("minilm-l6")


def test_a_very_long_text_is_read(tmp_path: Path) -> None:
    text = "word " * 100_000
    path = written(tmp_path / "data.csv", f'text,label\n"{text}",1\n')
    assert read(path).texts == (text.strip(),)


def test_the_delimiter_is_the_one_that_has_the_columns(tmp_path: Path) -> None:
    header = '"a,b,c,d,e";text;label\n'
    assert read(written(tmp_path / "data.csv", header + "1;hello;x\n")).texts == ("hello",)


def test_spaces_after_a_delimiter_do_no_harm(tmp_path: Path) -> None:
    path = written(tmp_path / "data.csv", 'text, label\n"a, b", "yes"\n')
    assert read(path) == Records(("a, b",), ("yes",))


@pytest.mark.parametrize("value", [1, 1.0, "1", "1.0", " 1.00 "])
def test_one_number_is_one_label(value: object) -> None:
    assert label_name(value) == "1"


@pytest.mark.parametrize("value", [None, "", "  ", "nan", "NaN", math.nan, math.inf, b"1", [1], {}])
def test_what_counts_as_a_missing_label(value: object) -> None:
    assert label_name(value) is None


@pytest.mark.parametrize(
    ("value", "name"),
    [("none", "none"), ("null", "null"), ("1.5", "1.5"), (1.5, "1.5"), (-2.0, "-2"),
     ("-0.50", "-0.50"), (True, "true"), ("v1.0", "v1.0"), ("1.0.0", "1.0.0"),
     (10**20, str(10**20)), (".", ".")],
)  # fmt: skip
def test_other_labels_keep_theirlabel_name(value: object, name: str) -> None:
    assert label_name(value) == name


@given(st.integers(-(2**53), 2**53))
def test_any_whole_number_is_one_label(number: int) -> None:
    spellings = (number, float(number), str(number), f"{number}.0")
    assert {label_name(spelling) for spelling in spellings} == {str(number)}


BAD_CSV: dict[str, tuple[str | bytes, str]] = {
    "no column": ("text,labels,id\na,1,2\n",
                  "did you mean 'labels'? there are: text, labels, id; name it with --label NAME"),
    "twice": ("text,label,label\na,1,2\n", "column 'label' is there twice"),
    "empty text": (f"text,label\n{SECRET},1\n  ,0\n", "data.csv: 1 of 2 records"),
    "blank lines count": (f"text,label\n\n{SECRET},1\n\n,0\n", "not a text (line 5)"),
    "quoted lines count": (f'text,label\n"{SECRET}\nx\ny",1\n,0\n', "not a text (line 5)"),
    "empty label": (f"text,label\n{SECRET},\n", "a label that is missing (line 2)"),
    "nan label": (f"text,label\n{SECRET},nan\n", "a label that is missing (line 2)"),
    "short row": (f"text,label\n{SECRET}\n", "too few columns (line 2)"),
    "long row": (f"text,label\n{SECRET}, you see,1\n", "more columns than the first row"),
    "open quote": (f'text,label\nfine,1\n"{SECRET},1\n', "not doubled (line 3)"),
    "stray quote": (f'text,label\n"{SECRET}"x,1\n', "not doubled (line 2)"),
    "only a header": ("text,label\n", "holds no records"),
    "empty": ("", "is empty"),
    "blank first row": ("\ntext,label\na,1\n", "no column names in its first row"),
    "headless": (f"{SECRET},good\nfine,good\n", "first row does not read like column names"),
    "headless sentence": (f"I hate my boss {SECRET},bad\n", "add a row such as text,label"),
    "latin-1": (b"text,label\ncaf\xe9,1\n",
                "(line 2); the file is not utf-8; it could be cp1252 or"),
    "latin-1 header": (b"texte,cat\xe9gorie\na,1\n", "first row is not utf-8; the file"),
    "utf-16": ("text,label\na,1\n".encode("utf-16-be"), "give it, as in --encoding utf-16-be"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_CSV)
def test_bad_csv(case: str, tmp_path: Path) -> None:
    content, expected = BAD_CSV[case]
    assert expected in refused(written(tmp_path / "data.csv", content))


def test_an_empty_partition_column_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "data.csv", f"text,label,who\n{SECRET},1,\n")
    assert "a partition column that is empty (line 2)" in refused(path, "who")
    assert "did you mean 'who'?" in refused(path, "whom")


BAD_JSONL = {
    "broken": (f'{{"text": "{SECRET}", "label": \n', "1 of 1 records cannot be used"),
    "deep": ("[" * 200_000, "not one JSON object on one line (line 1)"),
    "list": (f'["{SECRET}", 1]', "not one JSON object on one line (line 1)"),
    "key gone": (f'{{"text": "{SECRET}", "label": 1}}\n\n{{"text": "b"}}',
                 "a key that is missing (line 3)"),
    "null": (f'{{"text": "{SECRET}", "label": null}}', "a label that is missing (line 1)"),
    "NaN": (f'{{"text": "{SECRET}", "label": NaN}}', "a label that is missing (line 1)"),
    "nested label": (f'{{"text": "a", "label": ["{SECRET}"]}}', "a label that is a list"),
    "text is a number": ('{"text": 5, "label": 1}', "or not a text (line 1)"),
    "half a character": (f'{{"text": "{SECRET}\\ud83d", "label": 1}}', "this encoding (line 1)"),
    "empty": ("\n\n", "holds no records"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_JSONL)
def test_bad_jsonl(case: str, tmp_path: Path) -> None:
    content, expected = BAD_JSONL[case]
    assert expected in refused(written(tmp_path / "data.jsonl", content))


def test_bad_parquet(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    assert "not valid parquet" in refused(written(path, SECRET))
    pq.write_table(pa.table({"text": [SECRET], "Label": [1]}), path)
    assert "no column 'label'; did you mean 'Label'?" in refused(path)
    pq.write_table(pa.table({"text": [SECRET, None], "label": [1, 0]}), path)
    assert "not a text (row 2)" in refused(path)
    pq.write_table(pa.table({"text": [SECRET], "label": [math.nan]}), path)
    assert "a label that is missing (row 1)" in refused(path)
    pq.write_table(
        pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.int8())}), path
    )
    assert "holds no records" in refused(path)
    twice = pa.table([["a"], [1], [2]], names=["text", "label", "label"])
    pq.write_table(twice, path)
    assert "there twice" in refused(path)


def test_bad_folders(tmp_path: Path) -> None:
    assert "holds no sub-folder with .txt files" in refused(tmp_path)
    (tmp_path / "yes").mkdir()
    written(tmp_path / "yes" / "readme.md", SECRET)
    assert "holds no" in refused(tmp_path)
    written(tmp_path / "yes" / "one.txt", " \n")
    assert "a text that is empty or not a text (file 'yes/one.txt')" in refused(tmp_path)
    written(tmp_path / "yes" / "one.txt", b"\xff")
    assert "this encoding (file 'yes/one.txt'); the file is not utf-8" in refused(tmp_path)


def test_files_of_equal_names_in_two_folders_are_told_apart(tmp_path: Path) -> None:
    for name in ("no", "yes"):
        (tmp_path / name).mkdir()
        written(tmp_path / name / "1.txt", "fine" if name == "no" else "")
    assert "(file 'yes/1.txt')" in refused(tmp_path)


def test_the_mark_of_each_file_of_a_folder_says_its_encoding(tmp_path: Path) -> None:
    for name, encoding in (("a", "utf-16"), ("b", "utf-32"), ("c", "utf-8"), ("d", "utf-8-sig")):
        (tmp_path / name).mkdir()
        written(tmp_path / name / "1.txt", "naïve ☕".encode(encoding))
    assert read(tmp_path) == Records(("naïve ☕",) * 4, ("a", "b", "c", "d"))
    said = refused(tmp_path, encoding="utf-16")  # whose mark only a's has
    assert "3 of 4 records cannot be used" in said
    assert "'b/1.txt', 'c/1.txt', 'd/1.txt'" in said


def test_what_is_not_there(tmp_path: Path) -> None:
    assert "no such file, folder or asset; see `fedaipc assets list`" in refused("nowhere")
    for name in ("nowhere.csv", "no-folder/texts"):
        assert refused(name).endswith(f"{name}: no such file or folder")
    assert "did you mean sentiment-4?" in refused("sentiment4")
    assert "unknown kind of file (known: .csv" in refused(written(tmp_path / "data.xlsx", "a"))
    assert "cannot be read" in refused("x" * 5000)
    assert "no such file" in refused("~no-such-user-here/data.csv")


class _Dataset:
    """What `datasets.load_dataset` gives back, as far as it is used."""

    def __init__(self) -> None:
        self.columns = {"text": ["a", "b"], "label": [1, 0], "who": ["x", "y"]}
        self.column_names = list(self.columns)
        self.features = {
            "text": object(),
            "label": SimpleNamespace(names=["bad", "good"]),
            "who": 0,
        }

    def __getitem__(self, name: str) -> Any:
        return self.columns[name]


def hub(load_dataset: object) -> SimpleNamespace:
    """What stands for the package."""
    return SimpleNamespace(load_dataset=load_dataset, __spec__=ModuleSpec("datasets", None))


def test_the_hub_gives_class_names(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    data = _Dataset()

    def load_dataset(identifier: str, split: str) -> _Dataset:
        asked.append((identifier, split))
        return data

    monkeypatch.setitem(sys.modules, "datasets", hub(load_dataset))
    assert read("hf:someone/reviews", "who") == Records(("a", "b"), ("good", "bad"), ("x", "y"))
    assert read("hf:imdb:test[:10%]").labels == ("good", "bad")
    assert asked == [("someone/reviews", "train"), ("imdb", "test[:10%]")]
    assert "did you mean 'who'?" in refused("hf:imdb", "whom")
    data.columns["label"] = [1, -1]  # how hidden test labels are written
    assert "a label that is missing (row 2)" in refused("hf:imdb")


def test_a_hub_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(identifier: str, split: str) -> None:
        raise ConnectionError(SECRET)

    monkeypatch.setitem(sys.modules, "datasets", hub(load_dataset))
    assert "hf:imdb: cannot be loaded (ConnectionError)" in refused("hf:imdb")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"hf:imdb needs the extra \[hub\]: pip install"):
        read("hf:imdb")


def test_records_show_nothing_and_come_back_from_their_file(tmp_path: Path) -> None:
    records = Records(TEXTS, LABELS, GROUPS)
    path = tmp_path / "records.parquet"
    assert repr(records) == "Records()"
    assert records.take([3, 0]) == Records((TEXTS[3], TEXTS[0]), ("0", "1"), ("eve", "ann"))
    records.write_parquet(path)
    assert Records.read_parquet(path) == records
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert read(path) == Records(TEXTS, LABELS)  # a PC reads its own file like any other
    Records((), ()).write_parquet(path)
    assert Records.read_parquet(path) == Records((), ())
    path.write_bytes(b"x")
    with pytest.raises(DataError, match="missing or damaged"):
        Records.read_parquet(path)
