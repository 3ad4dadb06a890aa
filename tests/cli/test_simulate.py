"""`fedaipc simulate` on someone's own small CSV: what it leaves, and how it refuses bad input."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fedaipc.privacy.ledger import Ledger
from fedaipc.results import Results
from tests.support.reviews import write_reviews

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.commands import Ran

COLUMNS = ("--text", "body", "--label", "stars")
# One layer, head only: a run takes a second or two.
QUICK = ("--set", "model.keep_layers=1", "--set", "model.train.kind=head", "--rounds", "2",
         "--set", "speed.threads=1")  # fmt: skip
BARE = (*QUICK, "--set", "output.plots=false", "--out", "out")


@pytest.fixture(autouse=True)
def reviews(tmp_path: Path) -> Path:
    return write_reviews(tmp_path / "reviews.csv", 90, customers=3)


@pytest.fixture
def simulate(fedaipc: Callable[..., Ran], minilm: Path) -> Callable[..., Ran]:
    """A quick run of three PCs on the reviews, without plots, into `out`."""

    def call(*words: Any, source: object = "reviews.csv", pcs: int = 3) -> Ran:
        return fedaipc("simulate", source, *COLUMNS, "--clients", pcs, *BARE, *words)

    return call


def refused(ran: Ran, code: int, said: str = "") -> None:
    """One line on stderr, the right exit code, and no run folder left in `out`."""
    assert ran.code == code, ran.err
    assert ran.err.startswith("fedaipc: ")
    assert ran.err.count("\n") == 1
    assert said in ran.err
    assert not Path("out").exists() or list(Path("out").iterdir()) == []


# What a run leaves behind


def test_own_data_by_customer_gives_a_model_a_report_and_a_ledger(
    fedaipc: Callable[..., Ran], tmp_path: Path, minilm: Path
) -> None:
    ran = fedaipc("simulate", "reviews.csv", *COLUMNS, "--by", "customer", *QUICK)
    assert ran.code == 0, ran.err
    run = tmp_path / "runs" / "run"
    assert "run: minilm-l6, head, 3 PCs, 2 rounds, epsilon 8" in ran.out
    assert re.search(
        r"round 1/2: 3 of 3 PCs, validation accuracy [01]\.\d{3}, epsilon \d\.\d\d\n", ran.out
    )
    assert "NOT PRIVATE" not in ran.out
    assert "recipe: head on mean-pooled states, 2 rounds of 1 step on all records" in ran.out
    assert "noise is too strong to learn much: 0.32 of the largest possible update" in " ".join(
        ran.out.split()
    )
    assert "fedaipc predict runs/run" in ran.out
    assert ran.err == ""
    results = Results.load(run)
    assert results.status == "finished"
    assert [pc.groups for pc in results.pcs] == [(f"customer {n}",) for n in range(3)]
    assert sum(pc.examples or 0 for pc in results.pcs) == 72
    fit = results.data.train_fit
    assert fit is not None
    assert (fit.unknown_tokens, fit.cut_texts) == (0, 0)
    assert results.data.validation_fit == fit
    assert "0.0% of tokens unknown, 0.0% of texts cut" in ran.out
    card = (run / "model" / "README.md").read_text()
    for part in ("epsilon 7.44 at delta 1e-05", "reviews.csv", "Apache-2.0", '`"5"`'):
        assert part in card
    assert str(tmp_path) not in card
    assert "<html" in (run / "report.html").read_text()
    assert {path.suffix for path in (run / "plots").iterdir()} == {".png", ".svg"}
    assert not list(run.rglob("*cache*"))

    assert json.loads(fedaipc("report", run, "--json").out)["run_id"] == results.run_id
    assert "test accuracy" in fedaipc("report", run).out
    pcs = json.loads(fedaipc("privacy", "ledger", "show", run, "--json").out)
    assert [pc["charges"] for pc in pcs] == [2, 2, 2]
    # The target is met by RDP; what is charged is exact for steps on all records.
    assert all(7.4 < pc["charged"] <= pc["rdp"] <= 8 for pc in pcs)
    assert all(abs(pc["prv"] - pc["charged"]) < 0.003 for pc in pcs)
    assert {pc["filter"] for pc in pcs} == {"gaussian"}
    table = fedaipc("privacy", "ledger", "show", run).out
    assert all(name in table for name in ("pc-0000", "pc-0001", "pc-0002", "8.000", "Gaussian DP"))
    one = json.loads(fedaipc("privacy", "ledger", "show", run / "pcs" / "pc-0001", "--json").out)
    assert one == pcs[1:2]

    said = fedaipc("predict", run, "a lovely film", "[odd] text", "--json").out.splitlines()
    assert [json.loads(line)["text"] for line in said] == ["a lovely film", "[odd] text"]
    assert all(set(json.loads(line)["probability"]) == {"1", "5"} for line in said)
    label, chance, text = fedaipc("predict", run / "model", "a lovely film").out[:-1].split("\t")
    assert (label in {"1", "5"}, 0.5 <= float(chance) <= 1, text) == (True, True, "a lovely film")

    moved = run.rename(tmp_path / "elsewhere")
    assert json.loads(fedaipc("privacy", "ledger", "show", moved, "--json").out) == pcs


@pytest.mark.slow
def test_a_warm_up_on_public_texts_gives_the_base_and_is_told(
    simulate: Callable[..., Ran],
    fedaipc: Callable[..., Ran],
    tmp_path: Path,
    minilm: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Somewhere else, but with the real weights.
    monkeypatch.setenv("FEDAIPC_CACHE", str(tmp_path / "cache"))
    shutil.copytree(minilm, tmp_path / "cache" / "minilm-l6")
    write_reviews(tmp_path / "public.csv", 60)
    warm = ("--set", "warm_up.source=public.csv", "--set", "warm_up.text_column=body",
            "--set", "warm_up.label_column=stars", "--set", "warm_up.passes=1")  # fmt: skip
    ran = simulate(*warm)
    assert ran.code == 0, ran.err
    assert "warm-up: the base is trained on public texts" in ran.out
    assert "minilm-l6 warmed up on public.csv" in ran.out
    first = Results.load(tmp_path / "out" / "run")
    assert first.warm_up is not None
    assert (first.warm_up.base, first.warm_up.source) == ("minilm-l6", "public.csv")
    assert 0 < first.warm_up.texts <= 60
    assert first.start is not None
    assert f"validation accuracy {first.start.accuracy:.3f} before round 1" in ran.out

    again = simulate(*warm)  # the same base, made once
    assert "warm-up: the base" not in again.out
    second = Results.load(tmp_path / "out" / "run-2")
    assert (second.model.base, second.start) == (first.model.base, first.start)
    resolved = fedaipc("simulate", tmp_path / "out" / "run" / "config.toml", "--out", "out",
                       "--name", "third")  # fmt: skip
    assert resolved.code == 0, resolved.err
    assert Results.load(tmp_path / "out" / "third").model.base == first.model.base
    said = fedaipc("predict", tmp_path / "out" / "run", "a lovely film", "--json")
    assert said.code == 0


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (("body", "customer"), "cannot be used: a label that is not in the label list"),
        (("body", "nothing"), "public.csv: no column 'nothing'"),
    ],
)
def test_a_warm_up_with_other_labels_is_refused(
    simulate: Callable[..., Ran], tmp_path: Path, columns: tuple[str, str], said: str
) -> None:
    write_reviews(tmp_path / "public.csv", 30)
    text, label = columns
    ran = simulate(
        "--set", "warm_up.source=public.csv", "--set", f"warm_up.text_column={text}",
        "--set", f"warm_up.label_column={label}",
    )  # fmt: skip
    refused(ran, 3, said)


def test_texts_of_the_validation_and_test_sets_are_not_trained_on(
    simulate: Callable[..., Ran], tmp_path: Path
) -> None:
    held = write_reviews(tmp_path / "held.csv", 40)
    ran = simulate(
        "--set", "data.validation=held.csv", "--set", "data.test=held.csv",
        "--set", "warm_up.source=held.csv", "--set", "warm_up.text_column=body",
        "--set", "warm_up.label_column=stars",
    )  # fmt: skip
    assert held.is_file()
    refused(ran, 3, "data.validation: data.test holds all its texts")
    ran = simulate(
        "--set", "data.validation=held.csv",
        "--set", "warm_up.source=held.csv", "--set", "warm_up.text_column=body",
        "--set", "warm_up.label_column=stars",
    )  # fmt: skip
    refused(
        ran,
        3,
        "warm_up.source = held.csv: nothing is left but texts of the validation and test sets",
    )


@pytest.mark.slow
def test_three_flags_are_enough_for_own_data(
    fedaipc: Callable[..., Ran], tmp_path: Path, minilm: Path
) -> None:
    ran = fedaipc(
        "simulate", "reviews.csv", "--text", "body", "--label", "stars", "--by", "customer"
    )
    assert ran.code == 0, ran.err
    assert Results.load(tmp_path / "runs" / "run").status == "finished"


@pytest.mark.slow
def test_many_labels_get_more_rounds_unless_told(
    tmp_path: Path, fedaipc: Callable[..., Ran], minilm: Path
) -> None:
    (tmp_path / "many.csv").write_text(
        "text,label,who\n"
        + "".join(f"text number {n},label {n % 11},user {n % 3}\n" for n in range(99))
    )
    words = ("--by", "who", "--set", "model.keep_layers=1", "--set", "speed.threads=1",
             "--set", "output.plots=false", "--set", "evaluation.every=100")  # fmt: skip
    ran = fedaipc("simulate", "many.csv", *words)
    assert ran.code == 0, ran.err
    assert len(Results.load(Path("runs/run")).rounds) == 60
    assert "60 rounds of 1 step on all records" in ran.out


@pytest.mark.slow
def test_the_defaults_learn_from_real_messages_of_ten_pcs(
    fedaipc: Callable[..., Ran], minilm: Path, spam: Path
) -> None:
    """Where biases and norms with FedAvg stayed at the commonest label: macro-F1 .47."""
    words = ("--clients", "10", "--set", "data.limit=1500", "--set", "data.test_size=400",
             "--set", "output.plots=false", "--set", "evaluation.every=100")  # fmt: skip
    ran = fedaipc("simulate", "sms-spam", *words, "--insecure-test-seed", "1")
    assert ran.code == 0, ran.err
    results = Results.load(Path("runs/run"))
    assert results.test is not None
    assert results.test.macro_f1 > 0.65
    assert "too strong" not in ran.out
    assert "commonest label (" not in ran.out


def test_texts_on_stdin_are_classified_line_by_line(
    fedaipc: Callable[..., Ran], simulate: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    assert simulate().code == 0
    many = "\n".join(f"text {n}" for n in range(130)) + "\n\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(many))
    lines = fedaipc("predict", "out/run").out.splitlines()
    assert [line.split("\t")[2] for line in lines] == many.split("\n")[:130]
    Path("some texts.csv").write_text(many)
    said = "`fedaipc predict out/run < 'some texts.csv'` classifies its lines"
    assert said in fedaipc("predict", "out/run", "some texts.csv").err
    monkeypatch.setattr("sys.stdin", io.StringIO("\n\n"))
    assert "no text to classify" in fedaipc("predict", "out/run").err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))
    ran = fedaipc("predict", "out/run")
    assert (ran.code, ran.err) == (3, "fedaipc: stdin: not UTF-8; give texts as UTF-8\n")


def test_a_second_run_of_the_same_name_gets_its_own_folder(simulate: Callable[..., Ran]) -> None:
    assert simulate().code == 0
    first = Path("out/run/results.json").read_bytes()
    assert simulate().code == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["run", "run-2"]
    assert Path("out/run/results.json").read_bytes() == first


@pytest.mark.parametrize(
    "words", [("--set", "privacy.kind=none"), ("--insecure-test-seed", "7")], ids=["none", "seed"]
)
def test_a_run_without_privacy_says_so_at_the_start_and_at_the_end(
    fedaipc: Callable[..., Ran], simulate: Callable[..., Ran], words: tuple[str, ...]
) -> None:
    ran = simulate(*words)
    assert ran.code == 0, ran.err
    assert ran.out.startswith("NOT PRIVATE")
    assert ran.out.count("NOT PRIVATE") >= 2
    assert "NOT PRIVATE" in fedaipc("report", "out/run").out
    if words[1] == "privacy.kind=none":
        assert "NOT PRIVATE" in fedaipc("privacy", "ledger", "show", "out/run").out
    issued = fedaipc("privacy", "certificate", "issue", "out/run")
    assert issued.out.startswith("NOT PRIVATE")
    checked = fedaipc("privacy", "certificate", "verify", "out/run/certificate.json")
    assert checked.code == 0
    assert checked.err.startswith("it claims nothing: NOT PRIVATE")
    nowhere = fedaipc("privacy", "certificate", "issue", "nowhere")
    assert (nowhere.code, nowhere.err) == (15, "fedaipc: nowhere: no such folder\n")


@pytest.mark.slow
def test_pcs_with_fewer_records_than_a_batch_take_part(
    simulate: Callable[..., Ran], reviews: Path
) -> None:
    write_reviews(reviews, 24)
    ran = simulate("--set", "privacy.sampling_rate=0.5", pcs=10)
    assert ran.code == 0, ran.err
    results = Results.load(Path("out/run"))
    assert {pc.examples for pc in results.pcs} == {2}  # a batch expects 0.5 * 32 = 16
    assert [one.arrived for one in results.rounds] == [10, 10]


@pytest.mark.slow
def test_a_run_that_was_interrupted_goes_on_where_it_stopped(
    fedaipc: Callable[..., Ran], tmp_path: Path, minilm: Path
) -> None:
    words = ["simulate", "reviews.csv", *COLUMNS, "--clients", "3", *BARE, "--rounds", "60"]
    start = (  # Ctrl-C heeded, as in a terminal, however these tests were started
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from fedaipc.cli.main import run; run()"
    )
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", start, *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("round 2/60"):
            process.send_signal(signal.SIGINT)
            break
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.count("\n")) == (130, 1)
    assert "simulate --resume" in said
    stopped = Results.load(Path("out/run"))
    assert stopped.status == "interrupted"
    assert 1 <= len(stopped.rounds) < 60
    ran = fedaipc("simulate", "--resume", "out/run")
    assert ran.code == 0, ran.err
    finished = Results.load(Path("out/run"))
    assert (finished.status, finished.resumed, len(finished.rounds)) == ("finished", 1, 60)


# The end of the budget


def test_when_every_budget_is_spent_a_run_is_refused_with_code_7(
    simulate: Callable[..., Ran],
) -> None:
    keep = ("--pc-state", "state")
    assert simulate(*keep, "--name", "first").code == 0
    before = [path.read_bytes() for path in sorted(Path("state").glob("*/ledger.jsonl"))]
    ran = simulate(*keep, "--name", "second")
    assert (ran.code, ran.err.count("\n")) == (7, 1)
    assert "lifetime budgets are spent; use a new --pc-state" in ran.err
    assert before == [path.read_bytes() for path in sorted(Path("state").glob("*/ledger.jsonl"))]
    assert [path.name for path in Path("out").iterdir()] == ["first"]
    assert Results.load(Path("out/first")).status == "finished"


def test_a_budget_that_ends_before_the_rounds_do_ends_with_code_7_and_a_model(
    fedaipc: Callable[..., Ran], simulate: Callable[..., Ran]
) -> None:
    short = ("--set", "privacy.noise_multiplier=1.0", "--set", "federation.lifetime_epsilon=4",
             "--set", "privacy.sampling_rate=0.1")  # fmt: skip
    ran = simulate(*short, "--rounds", "30", "--insecure-test-seed", "7")
    assert (ran.code, ran.err.count("\n")) == (7, 1)
    assert "can afford another round" in ran.err
    assert "(federation.lifetime_epsilon) are spent" in ran.err
    assert "the PCs' budgets end after" in ran.out
    assert "epsilon 4" not in ran.out
    results = Results.load(Path("out/run"))
    assert results.status == "stopped"
    assert 0 < sum(not r.void for r in results.rounds) < 30
    assert [pc.state for pc in results.pcs] == ["exhausted"] * 3
    assert "stopped" in fedaipc("report", "out/run").out
    assert fedaipc("predict", "out/run", "a text").code == 0
    # What was not private from the start is not private after a pause either.
    again = fedaipc("simulate", "--resume", "out/run")
    assert again.code == 7
    assert again.out.startswith("NOT PRIVATE")


# Bad input


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        ("", 3, "is empty"),
        ("body,stars\n", 3, "holds no records"),
        ("text,label\nsecret words,1\n", 3, "there are: text, label; name it with --text NAME"),
        ("bodi,stars\nsecret words,1\n", 3, "did you mean 'bodi'?"),
        ("body,stars\nsecret words,1\n  ,5\n", 3, "a text that is empty or not a text (line 3)"),
        ("body,stars\nsecret words,1\nsecret more,\n", 3, "a label that is missing (line 3)"),
        ("body,stars\nsecret words,1\nsecret more,nan\n", 3, "a label that is missing (line 3)"),
        ("body,stars\nsecret words,1\nsecret more\n", 3, "too few columns (line 3)"),
        ('body,stars\n"secret words,1\n', 3, "an unclosed quotation mark"),
        ("body,stars\nsecret a,1\nsecret b,1\n" * 20, 3, ""),
        ("body,stars\n" + "".join(f"secret {n},1\n" for n in range(50)), 3, "at least two"),
        ("body,stars\nsecret a,1\nsecret b,5\n", 3, "too few"),
        ("body,stars\n" + "".join(f"secret {n},{n % 2}\n" for n in range(4)), 3, ""),
    ],
)  # fmt: skip
def test_data_that_cannot_be_used_is_one_line_without_a_word_of_it(
    simulate: Callable[..., Ran], reviews: Path, content: str, code: int, said: str
) -> None:
    reviews.write_text(content)
    ran = simulate()
    refused(ran, code, said)
    assert "secret" not in ran.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("nowhere.csv",), 3, "nowhere.csv: no such file or folder"),
        (("nowhere.toml",), 2, "nowhere.toml: no such file"),
        (("sms-spa",), 3, "did you mean sms-spam?"),
        (("minilm-l6",), 3, "is a model, not text"),
        (("reviews.csv", "--by", "custmer"), 3, "did you mean 'customer'?"),
        (("reviews.csv", "--clients", "0"), 2, "federation.clients = 0"),
        (("reviews.csv", "--rounds", "0"), 2, "rounds = 0"),
        (("reviews.csv", "--epsilon", "-1"), 2, "privacy.epsilon = -1.0"),
        (("reviews.csv", "--clients", "73"), 3, "federation.clients to 72 or less"),
        (("reviews.csv", "--set", "federation.client=3"), 2, "did you mean clients?"),
        (("reviews.csv", "--name", "a/b"), 2, "output.name = 'a/b'"),
        (("reviews.csv", "--set", "privacy.delta=0.009"), 6, "privacy.delta = 0.009"),
        (("reviews.csv", "--set", "model.keep_layers=7"), 5, "model.keep_layers = 7"),
        (("reviews.csv", "--set", "model.base=./nowhere"), 5, "no such folder"),
        (("reviews.csv", "--resume", "out"), 2, "leave out"),
    ],
)
def test_a_job_that_cannot_be_is_one_line_and_leaves_nothing(
    fedaipc: Callable[..., Ran], words: tuple[str, ...], code: int, said: str
) -> None:
    refused(fedaipc("simulate", words[0], *COLUMNS, *BARE, *words[1:]), code, said)


def test_a_broken_config_is_refused(fedaipc: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("[data\n")
    refused(fedaipc("simulate", "my.toml", "--out", "out"), 2, "my.toml: not valid TOML")
    (tmp_path / "my.toml").write_text("[data]\nsauce = 1\n")
    refused(fedaipc("simulate", "my.toml", "--out", "out"), 2, "data.sauce: unknown key")


def test_a_model_folder_without_weights_is_refused(
    simulate: Callable[..., Ran], tmp_path: Path, minilm: Path
) -> None:
    folder = shutil.copytree(minilm, tmp_path / "model")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(simulate("--set", "model.base=model"), 5, "model: cannot be loaded")
    (folder / "model.safetensors").unlink()
    refused(simulate("--set", "model.base=model"), 5, "holds no .safetensors weights")


def test_a_corrupted_asset_is_refused_with_the_way_to_mend_it(
    simulate: Callable[..., Ran], tmp_path: Path, spam: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDAIPC_CACHE", str(tmp_path / "cache"))
    copy = shutil.copytree(spam.parent, tmp_path / "cache" / "sms-spam")
    with (copy / spam.name).open("ab") as file:
        file.write(b"x")
    refused(simulate(source="sms-spam"), 4, "`fedaipc assets fetch --again sms-spam`")


def test_finished_missing_and_foreign_runs_cannot_be_resumed(
    fedaipc: Callable[..., Ran], simulate: Callable[..., Ran]
) -> None:
    refused(fedaipc("simulate", "--resume", "out/nowhere"), 12, "not a run folder")
    refused(fedaipc("simulate", "--resume", "reviews.csv"), 12, "not a run folder")
    assert simulate().code == 0
    ran = fedaipc("simulate", "--resume", "out/run")
    assert (ran.code, ran.err) == (
        10, "fedaipc: out/run: this run is finished; there is nothing to resume\n"
    )  # fmt: skip


# Places that cannot be written


@pytest.mark.parametrize("place", ["reviews.csv/below", "/proc/nowhere", "/dev/null/x"])
def test_a_place_that_cannot_be_written_is_refused(
    simulate: Callable[..., Ran], place: str
) -> None:
    refused(simulate("--out", place), 12, "choose another --out")
    refused(simulate("--pc-state", place), 12)


@pytest.mark.parametrize("writes", [0, 3, 8, 14, 17, 22])
def test_a_full_disk_is_one_line_and_loses_no_charge(
    simulate: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """The disk is full after so many durable writes: while enrolling, in a round, at the end."""
    sync, left = os.fsync, writes

    def full(handle: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        ran = simulate("--insecure-test-seed", "7")
    assert ran.code in {1, 8, 10, 12}, ran.err
    assert ran.err.startswith("fedaipc: ")
    assert ran.err.count("\n") == 1
    for run in Path("out").iterdir():  # once a run was made, all of it can be read and resumed
        for path in run.glob("pcs/*/ledger.jsonl"):
            Ledger(path)
        json.loads((run / "pc-state.json").read_text())
        if (run / "results.json").exists():
            assert Results.load(run).status != "finished"


def test_an_error_nobody_foresaw_is_not_hidden(
    fedaipc: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: Any, **_kwargs: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("fedaipc.cli.simulate.read_settings", broken)
    with pytest.raises(ZeroDivisionError):
        fedaipc("simulate", "reviews.csv")


# Sealing


def test_a_run_says_that_its_updates_were_sealed(simulate: Callable[..., Ran]) -> None:
    ran = simulate()
    assert ran.code == 0, ran.err
    assert "sealed, 32 bits" in ran.out
    assert "NOT SEALED" not in ran.out
    found = Results.load(Path("out/run")).aggregation
    assert (found.kind, found.colluding, found.least) == ("secagg", 1, 3)


def test_plain_updates_are_marked_wherever_the_run_is_shown(
    simulate: Callable[..., Ran], fedaipc: Callable[..., Ran]
) -> None:
    ran = simulate("--insecure-plain-updates", "--set", "output.plots=true")
    assert ran.code == 0, ran.err
    first, *_ = ran.out.splitlines()
    assert "NOT SEALED" in first
    assert ran.out.count("NOT SEALED") == 2
    assert Results.load(Path("out/run")).aggregation.kind == "plain"
    assert "NOT SEALED" in Path("out/run/report.html").read_text()
    again = fedaipc("report", "out/run")
    assert "NOT SEALED" in again.out
    simulate("--name", "sealed")
    both = fedaipc("report", "out/run", "out/sealed")
    assert re.search(r"\bNO\b", both.out)
    assert re.search(r"\byes\b", both.out)


def test_plain_updates_must_be_asked_for_by_their_flag(simulate: Callable[..., Ran]) -> None:
    refused(simulate("--set", "aggregation.kind=plain"), 2, "--insecure-plain-updates")


def test_two_pcs_cannot_be_sealed_and_the_line_says_what_to_do(
    simulate: Callable[..., Ran],
) -> None:
    refused(simulate(pcs=2), 2, "--insecure-plain-updates")
    assert simulate("--insecure-plain-updates", pcs=2).code == 0
