"""Each record is judged by itself; what is left out is counted, and named by line."""

from __future__ import annotations

import csv
import io
import json
import string
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedaipc.config import DataSettings, TextSource
from fedaipc.data.csv_lines import MAX_LINES
from fedaipc.data.prepare import label_list, prepare_simulation
from fedaipc.data.reading import Fault, Reading, label_hints
from fedaipc.data.records import Records
from fedaipc.data.sources import read_records
from fedaipc.errors import ConfigError, DataError


def reading(path: Path, content: str | bytes, **how: Any) -> Reading:
    labels = how.pop("labels", None)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_records(str(path), TextSource(**how), labels=labels)


def places(found: Reading) -> dict[Fault, tuple[object, ...]]:
    return {dropped.fault: dropped.places for dropped in found.dropped}


# A record must not depend on another


def test_a_quotation_that_never_closes_costs_its_own_line(tmp_path: Path) -> None:
    """Also where later texts are quoted, or where the label stands first."""
    for content, line in (
        ('text,label\ngood 0,a\n"never closed,a\ngood 1,a\n"x, y",b\n', 3),
        ('label,text\na,good 0\na,"never closed\na,good 1\nb,"x, y"\n', 3),
    ):
        found = reading(tmp_path / "data.csv", content)
        assert found.records == Records(("good 0", "good 1", "x, y"), ("a", "a", "b"))
        assert places(found) == {Fault.QUOTATION: (line,)}
        assert f"(line {line})" in found.left_out_text()


def test_a_tab_separated_file_has_no_quotations_unless_asked(tmp_path: Path) -> None:
    """Read as quoted, the three people's records would be one."""
    content = 'label\ttext\nno\t"A\nyes\tB\nno\tC"\n'
    found = reading(tmp_path / "data.tsv", content)
    assert found.records == Records(('"A', "B", 'C"'), ("no", "yes", "no"))
    asked = reading(tmp_path / "data.tsv", content, quoting="csv")
    assert asked.records == Records(("A\nyes\tB\nno\tC",), ("no",))


def test_texts_that_keep_their_quotation_marks_are_remarked_on(tmp_path: Path) -> None:
    content = '"text"\t"label"\n"one ""a"""\t"x"\n"two"\t"y"\n'
    assert "2 texts keep the quotation marks" in reading(tmp_path / "a.tsv", content).quoted_hint
    found = reading(tmp_path / "a.tsv", content, quoting="csv")
    assert (found.records.texts, found.quoted_hint) == (('one "a"', "two"), "")


@pytest.mark.parametrize(
    "content",
    [
        'label,text\nno,"A\nyes,B\nno,C"\nyes,D\n',
        'label,text\nno,"A\nno,C"\n',
        'text,label\n"A,no\nB",no\n',
        'text,label\nx,yes\n"A,no\nB,yes\nC",no\n',
    ],
)
def test_a_text_that_swallows_records_is_asked_about(tmp_path: Path, content: str) -> None:
    found = reading(tmp_path / "data.csv", content)
    with pytest.raises(DataError, match="look like records") as caught:
        found.all()
    assert "--quoting line" in str(caught.value)
    assert "--quoting csv" in str(caught.value)
    reading(tmp_path / "data.csv", content, quoting="csv").all()
    lines = reading(tmp_path / "data.csv", content, quoting="line")
    assert "\n" not in "".join(lines.records.texts)


def test_a_text_over_several_lines_is_no_reason_to_ask(tmp_path: Path) -> None:
    content = 'text,label\n"one, and\nmore, of\nit",a\n"a\n\nb",b\nc,a\n'
    found = reading(tmp_path / "data.csv", content)
    assert found.all().texts == ("one, and\nmore, of\nit", "a\n\nb", "c")
    assert found.quoting == "csv"


def test_where_no_text_goes_over_several_lines_none_may_later(tmp_path: Path) -> None:
    assert reading(tmp_path / "data.csv", 'text,label\n"a, b",x\nc,y\n').quoting == "line"


def test_a_record_of_too_many_lines_is_none(tmp_path: Path) -> None:
    ends = {}
    for count in (MAX_LINES, MAX_LINES + 1):
        text = "\n".join(["x"] * (count - 1) + ["y, z"])  # whose last line is no record by itself
        found = reading(tmp_path / "data.csv", f'text,label\n"{text}",a\nb,a\n')
        ends[count] = len(found.records)
        assert "b" in found.records.texts
    assert ends == {MAX_LINES: 2, MAX_LINES + 1: 1}


_DIRT = (
    b'"open,a', b'x",a', b'"a"b,a', b"a", b"a,b,c", b",a", b"x,", b"caf\xe9,a", b"\xff\xfe,b",
    b'"",a', b'""",a', b"x,y\x00", b'a "b" c,x',
)  # fmt: skip


@settings(max_examples=30)
@given(st.lists(st.sampled_from(_DIRT) | st.text(string.ascii_letters + ' ",').map(str.encode)))
def test_one_line_is_one_record_whatever_the_others_are(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    """With quoting "line" (what most files are enrolled with) and "none"; lines count right."""
    path = tmp_path_factory.getbasetemp() / "lines.csv"
    for quoting in ("line", "none"):
        alone = [reading(path, b"text,label\n" + line, quoting=quoting) for line in lines]
        found = reading(path, b"\n".join([b"text,label", *lines]), quoting=quoting)
        assert found.records.texts == tuple(t for one in alone for t in one.records.texts)
        assert found.records.labels == tuple(n for one in alone for n in one.records.labels)
        bad = [number for number, one in enumerate(alone, start=2) if one.dropped]
        named = [place for where in places(found).values() for place in where]
        assert found.left_out == len(bad)
        assert set(named) <= set(bad)
        assert len(named) == len(bad) or len(named) >= 10


_TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0")).filter(
    lambda text: text.strip()
)
_RECORDS = st.lists(st.tuples(_TEXTS, st.sampled_from(["no", "yes", "perhaps so"])), min_size=1)


@settings(max_examples=30)
@given(_RECORDS, st.data())
def test_what_a_writer_of_csv_writes_comes_back_beside_any_line_of_dirt(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], data: st.DataObject
) -> None:
    """Records before the dirt are never touched; without it all come back."""
    path = tmp_path_factory.getbasetemp() / "written.csv"
    parts = []
    for row in rows:
        out = io.StringIO(newline="")
        csv.writer(out, quoting=csv.QUOTE_ALL).writerow(row)
        parts.append(out.getvalue().encode())
    texts = tuple(text.strip() for text, _ in rows)
    found = reading(path, b"text,label\r\n" + b"".join(parts), quoting="csv")
    assert (found.records.texts, found.dropped) == (texts, ())
    place = data.draw(st.integers(0, len(parts)))
    dirt = data.draw(st.sampled_from(_DIRT))
    found = reading(
        path, b"text,label\r\n" + b"".join(parts[:place]) + dirt + b"\n" + b"".join(parts[place:]),
        quoting="csv",
    )  # fmt: skip
    assert found.records.texts[:place] == texts[:place]


@settings(max_examples=30)
@given(_RECORDS)
def test_the_same_records_come_back_from_each_kind_of_file(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    expected = Records(tuple(t.strip() for t, _ in rows), tuple(label for _, label in rows))
    for delimiter, name in ((",", "a.csv"), ("\t", "a.tsv"), (";", "b.csv")):
        out = io.StringIO(newline="")
        writer = csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writerows([("text", "label"), *rows])
        for encoding in ("utf-8", "utf-16", "utf-32-be", "gb18030"):
            content = out.getvalue().encode(encoding)
            found = reading(folder / name, content, quoting="csv", encoding=encoding)
            assert found.all() == expected
    objects = "\n".join(json.dumps({"text": text, "label": label}) for text, label in rows)
    assert reading(folder / "a.jsonl", objects).all() == expected
    expected.write_parquet(folder / "a.parquet")
    assert read_records(str(folder / "a.parquet"), TextSource()).all() == expected


# What is left out is told


def test_all_dirty_rows_are_told_at_once(tmp_path: Path) -> None:
    rows = ["fine,a", ",a", "x,", *["only"] * 12, '"multi\nline",b', "x,a,more", *["y,a"] * 15]
    found = reading(tmp_path / "data.csv", "text,label\n" + "\n".join(rows) + "\n")
    with pytest.raises(DataError, match=r"--set data\.skip_unusable=true") as caught:
        found.all()
    said = str(caught.value)
    assert "data.csv: 15 of 32 records cannot be used: " in said
    assert "too few columns (lines 5, 6, 7, 8, 9, 10, 11, 12, 13, 14 and 2 more)" in said
    assert "not a text (line 3)" in said
    assert "missing (line 4)" in said
    assert "(line 19)" in said  # behind a text over two lines
    assert found.some().take([0, 1]) == Records(("fine", "multi\nline"), ("a", "b"))


def test_a_simulation_leaves_out_what_it_is_told_to_and_says_how_much(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    lines = [f"text {n},{n % 2}" for n in range(20)] + [",0", "x,"]
    path.write_text("text,label\n" + "\n".join(lines))
    with pytest.raises(DataError, match="2 of 22 records"):
        prepare_simulation(DataSettings(source=str(path)), 2)
    data = prepare_simulation(DataSettings(source=str(path), skip_unusable=True), 2)
    assert len(data.train) + len(data.test) + len(data.validation) == 20
    (note,) = data.notes
    assert "2 of 22 records cannot be used" in note
    assert "(line 22)" in note


def test_labels_that_are_not_in_the_list_are_named(tmp_path: Path) -> None:
    content = "text,label\na,yes\nb,Yes\nc,may\x1b[2Jbe\nd,no\n"
    found = reading(tmp_path / "data.csv", content, labels=("yes", "no"))
    assert found.records.labels == ("yes", "no")
    (dropped,) = found.dropped
    assert (dropped.names, dropped.places) == (("Yes", "may\x1b[2Jbe"), (3, 4))
    assert "'Yes' (almost the same as 'yes'), 'may\\x1b[2Jbe')" in found.left_out_text()
    path = tmp_path / "data.csv"
    with pytest.raises(DataError, match=r"not in the label list \(lines 3, 4: 'Yes'"):
        prepare_simulation(DataSettings(source=str(path), labels=("yes", "no")), 1)


@pytest.mark.parametrize("known", [0, 4, 40])
@pytest.mark.parametrize("texts", [3, 30])
@pytest.mark.parametrize("length", [1, 20])
def test_texts_in_the_place_of_labels_are_not_shown(
    tmp_path: Path, known: int, texts: int, length: int
) -> None:
    """Columns that were swapped: owners send such lines to others."""
    rows = ["a,yes"] * known + [f"no,{'zq7 ' * length}{n}" for n in range(texts)]
    found = reading(tmp_path / "a.csv", "\n".join(("text,label", *rows)), labels=("yes", "no"))
    said = found.left_out_text()
    assert f"{texts} of {known + texts} records" in said
    few = texts == 3 and length == 1 and known > texts  # a label or two that are misspelled
    assert ("zq7" in said) == few


def test_few_short_labels_are_named_though_no_record_has_a_known_one(tmp_path: Path) -> None:
    content = "text,label\n" + "a,pos\nb,neg\n" * 3
    found = reading(tmp_path / "a.csv", content, labels=("positive", "negative"))
    assert "(lines 2, 3, 4, 5, 6, 7: 'pos', 'neg')" in found.left_out_text()


@pytest.mark.parametrize("true", [True, "True", "TRUE", "true"])
def test_a_boolean_is_one_label_in_every_kind_of_file(tmp_path: Path, true: object) -> None:
    names = [
        reading(tmp_path / "a.csv", f"text,label\na,{true}\n").records.labels,
        reading(tmp_path / "a.jsonl", json.dumps({"text": "a", "label": true})).records.labels,
        reading(tmp_path / "a.csv", f"text,label\na,{true}\n", labels=(str(true),)).records.labels,
    ]
    pq.write_table(pa.table({"text": ["a"], "label": [true]}), tmp_path / "a.parquet")
    names.append(read_records(str(tmp_path / "a.parquet"), TextSource()).records.labels)
    assert names == [("true",)] * 4
    assert label_list(Records(("a",), ("true",)), (str(true), "0")) == ("true", "0")


def test_a_list_of_labels_that_names_one_twice_is_refused() -> None:
    with pytest.raises(DataError, match="are the same one"):
        label_list(Records((), ()), ("True", "true"))


def test_a_label_that_is_a_list_is_called_one(tmp_path: Path) -> None:
    content = '{"text": "a", "label": ["x"]}\n{"text": "b", "label": {"x": 1}}\n'
    found = reading(tmp_path / "a.jsonl", content)
    assert places(found) == {Fault.LIST: (1, 2)}
    assert "read like lists" in label_hints(["['x', 'y']", "a", "a"])[0]


def test_odd_labels_are_hinted_at() -> None:
    near, single = label_hints(["Yes", "yes", "yes", "no", "no", "very  good", "Very good"])
    assert "'Yes', 'yes'" in near
    assert "'Very good', 'very  good'" in near
    assert single.startswith("3 of 5 labels have one text only")
    assert label_hints(["a", "a", "b", "b"]) == ()
    assert "zq7" not in label_hints([f"zq7 {n}" for n in range(11)])[0]


# Encodings


def test_a_file_of_another_encoding_says_which_option_to_give(tmp_path: Path) -> None:
    """48 of 60 rows in Latin-1 were once left out without a word."""
    lines = [f"caf\u00e9 {n},a" if n % 5 else f"cafe {n},a" for n in range(60)]
    content = ("text,label\n" + "\n".join(lines)).encode("latin-1")
    found = reading(tmp_path / "data.csv", content)
    assert len(found.records) == 12
    assert "48 of 60 records cannot be used" in found.left_out_text()
    assert "cp1252" in found.left_out_text()
    assert "--encoding cp1252" in found.left_out_text()
    for encoding in ("cp1252", "latin-1"):
        assert len(reading(tmp_path / "data.csv", content, encoding=encoding).all()) == 60


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_file_with_a_mark_needs_no_option(tmp_path: Path, encoding: str, kind: str) -> None:
    content = "text,label\n\u4f60\u597d,a\n"
    if kind == "jsonl":
        content = '{"text": "\u4f60\u597d", "label": "a"}\n'
    found = reading(tmp_path / f"a.{kind}", content.encode(encoding))
    assert found.all() == Records(("\u4f60\u597d",), ("a",))
    assert found.encoding == encoding.removesuffix("-sig")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_utf16_without_a_mark_is_hinted_at(tmp_path: Path, kind: str) -> None:
    content = "text,label\na,1\n" if kind == "csv" else '{"text": "a", "label": 1}\n'
    with pytest.raises(DataError, match="--encoding utf-16-le"):
        reading(tmp_path / f"a.{kind}", content.encode("utf-16-le")).all()


def test_half_a_character_stays_in_its_line(tmp_path: Path) -> None:
    """A decoder of the whole file would take the line's end as the other half, or keep a shift."""
    bad = b"text,label\n\x93\n\x93\xfa\x96{,a\n"
    found = reading(tmp_path / "a.csv", bad, encoding="shift_jis")
    assert found.records == Records(("\u65e5\u672c",), ("a",))
    shifted = b"text,label\n\x1b$BF|,a\nplain,b\n"
    found = reading(tmp_path / "a.csv", shifted, encoding="iso2022_jp")
    assert found.records.texts[-1] == "plain"


def test_old_line_ends_count_as_lines(tmp_path: Path) -> None:
    found = reading(tmp_path / "a.csv", "text,label\ra,1\r,1\r\nb,2\n")
    assert found.records.texts == ("a", "b")
    assert places(found) == {Fault.TEXT: (3,)}


@pytest.mark.parametrize("name", ["base64", "rot13", "no such", "undefined", "idna", "a\0", ""])
def test_what_is_no_encoding_of_text_is_refused(name: str) -> None:
    from fedaipc.config import load_settings

    with pytest.raises(ConfigError, match=r"data\.encoding"):
        load_settings(None, (), {"data.encoding": name})


# Files without a header


def test_columns_of_a_file_without_a_header_are_numbers(tmp_path: Path) -> None:
    how: dict[str, Any] = {"header": False, "text_column": "3", "label_column": "1"}
    found = reading(tmp_path / "a.csv", '0,ann,"a, b"\n1,bob,c\n2,x\n', **how)
    assert found.records == Records(("a, b", "c"), ("0", "1"))
    assert places(found) == {Fault.FEW: (3,)}
    found = reading(tmp_path / "a.tsv", "0\tann\ta; b\n", **how)
    assert found.records.texts == ("a; b",)
    with pytest.raises(DataError, match=r"only \.csv and \.tsv"):
        reading(tmp_path / "a.jsonl", "{}", **how)


def test_who_names_columns_of_a_file_without_a_header_is_told_how(tmp_path: Path) -> None:
    from fedaipc.config import load_settings

    said = "--set data.header=false --set data.text_column=2 --set data.label_column=1"
    with pytest.raises(ConfigError, match=said):
        load_settings(None, (), {"data.header": False})
    assert load_settings(None, said.replace("--set ", "").split()).data.text_column == "2"
    with pytest.raises(DataError, match="--no-header"):
        reading(tmp_path / "a.csv", "I hate it all,bad\nI like it,good\n").all()
    path = tmp_path / "b.csv"
    path.write_text("a,0\n")
    how = TextSource(header=False, text_column="1", label_column="2")
    with pytest.raises(DataError, match="needs column numbers"):
        read_records(str(path), how, group_column="who")
