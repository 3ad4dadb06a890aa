"""The public names as a notebook uses them: jobs, data, runs, and one-line errors."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedaipc as fa
from fedaipc.config import load_settings
from fedaipc.errors import ConfigError, DataError, OutputError, PrivacyError
from fedaipc.secagg.keys import SigningKey
from tests.support.schedules import dp_sgd
from tests.support.small import ROWS, small

FA: Any = fa  # for what the types refuse before the settings do


@pytest.fixture(scope="module")
def run(minilm: Path) -> fa.Run:
    del minilm
    return fa.simulate(small(), fa.load_data(ROWS).partition(clients=4), progress=False)


# Names


def test_all_that_is_public_is_there_and_no_name_leads_nowhere() -> None:
    assert all(getattr(fa, name) is not None for name in fa.__all__)
    assert set(fa.__all__) <= set(dir(fa))
    assert all(callable(getattr(fa.privacy, name)) for name in fa.privacy.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        fa.nothing  # noqa: B018
    with pytest.raises(AttributeError, match="nothing"):
        fa.privacy.nothing  # noqa: B018


def test_to_import_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, fedaipc; fedaipc.Job; fedaipc.LoRA(rank=2)\n"
        "heavy = {'torch', 'transformers', 'opacus', 'peft', 'flwr', 'matplotlib', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Jobs


def test_a_job_is_what_the_same_toml_is(tmp_path: Path) -> None:
    job = fa.Job(
        model=fa.TextClassifier("minilm-l6", train=fa.LoRA(rank=4)),
        privacy=fa.DPSGD(epsilon=4, clip_norm=2.0),
        aggregation=fa.SecAgg(threshold=0.6),
        server=fa.FedAvgM(momentum=0.8),
        rounds=7,
    )
    job.to_toml(tmp_path / "job.toml")
    assert fa.Job.from_toml(tmp_path / "job.toml").model_dump() == job.model_dump()
    words = [
        "model.train.kind=lora", "model.train.rank=4", "privacy.epsilon=4", "privacy.clip_norm=2",
        "aggregation.threshold=0.6", "server=fedavgm", "server.momentum=0.8", "rounds=7",
    ]  # fmt: skip
    assert load_settings(None, words).model_dump() == job.model_dump()
    # What nobody gave follows from the method, as it does in a file.
    assert (job.privacy.sampling_rate, job.training.learning_rate) == (0.1, 0.5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: fa.LoRA(rank=0), r"^LoRA: rank = 0: .*\(allowed: from 1 to 1024\)$"),
        (lambda: FA.LoRA(ranks=3), "^LoRA: ranks: unknown key of kind .lora.; did you mean rank"),
        (lambda: fa.DPSGD(epsilon=1, noise_multiplier=1), "^DPSGD: give one of privacy.epsilon"),
        (lambda: fa.Job(privacy=fa.NoPrivacy(), aggregation=fa.SecAgg(bits=16)), "bits = 16"),
        (lambda: fa.Job(model={"train": {"kind": "lore"}}), "model.train.kind = 'lore': not known"),
        (lambda: FA.Job(model="minilm-l6"), "^Job: model: is a section: .* such as base, train$"),
        (lambda: FA.Job(round=3), "^Job: round: unknown key; did you mean rounds"),
        (lambda: FA.Job(3), "^Job: give its settings by name$"),
        (lambda: fa.TextClassifier(base="a", max_length=True), "max_length = True"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_line(make: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_plan_says_what_a_job_costs_before_it_runs(minilm: Path) -> None:
    del minilm
    plan = small(privacy=fa.DPSGD(epsilon=2, delta=1e-6)).plan()
    assert plan.epsilon is not None
    assert plan.epsilon["rdp"] <= 2
    assert plan.epsilon["pld"] <= plan.epsilon["rdp"]
    assert "epsilon" in str(plan)
    assert plan.trained_values is None
    known = small(privacy=fa.DPSGD(epsilon=0.5)).plan(fa.load_data(ROWS).partition(clients=4))
    assert known.trained_values == 2 * 384 + 2
    assert known.warning is not None  # so few records drown in noise
    assert known.notes == ("0.0% of tokens unknown, 0.0% of texts cut at model.max_length = 16",)
    short = small(model=fa.TextClassifier("minilm-l6", keep_layers=1, max_length=4))
    assert "100% of the training texts are longer" in str(short.plan(fa.load_data(ROWS)))
    shared = small(privacy=fa.DPSGD(epsilon=2, noise="distributed")).plan()
    assert shared.epsilon is not None
    assert shared.local_epsilon is not None
    assert shared.epsilon["rdp"] <= 2 < shared.local_epsilon
    assert f"of {shared.honest} honest clients" in str(shared)
    nothing = small(privacy=fa.NoPrivacy(), aggregation=fa.PlainAggregation()).plan()
    assert nothing.epsilon is None
    assert "NOT PRIVATE" in str(nothing)
    assert "NOT SEALED" in str(nothing)
    with pytest.raises(PrivacyError, match="no noise"):
        small(privacy=fa.DPSGD(epsilon=1e-9, delta=1e-12)).plan()


@pytest.mark.parametrize(
    ("unit", "said"),
    [
        ("record", r"size class 32: choose at most 3\.1e-03"),
        ("client", r"20 clients: choose at most 5\.0e-03"),
    ],
)
def test_a_plan_refuses_a_delta_that_simulate_refuses(minilm: Path, unit: Any, said: str) -> None:
    del minilm
    data = fa.load_data(ROWS).partition(clients=20)
    job = small(privacy=fa.DPSGD(delta=0.009, unit=unit))
    for ask in (job.plan, lambda data: fa.simulate(job, data, progress=False)):
        with pytest.raises(PrivacyError, match=said):
            ask(data)


def test_a_plan_without_a_partition_counts_the_clients_of_the_job(minilm: Path) -> None:
    """All 192 records on one client would make the delta too large."""
    del minilm
    job = small(privacy=fa.DPSGD(delta=1 / 320))
    assert job.plan(fa.load_data(ROWS)).delta == 1 / 320


def test_the_lifetime_budget_is_no_smaller_than_the_target_that_somebody_gives() -> None:
    job = fa.Job(privacy=fa.DPSGD(epsilon=10))
    assert job.federation.lifetime_epsilon == 10
    assert job.plan().notes == ()
    for less in (fa.Job(), fa.Job(privacy=fa.DPSGD(epsilon=3))):
        assert less.federation.lifetime_epsilon == 8
    own = fa.Job(privacy=fa.DPSGD(epsilon=10), federation={"lifetime_epsilon": 8})
    (line,) = own.plan().notes
    assert line in str(own.plan())
    assert line.endswith("of 30 rounds: federation.lifetime_epsilon is 8")
    with pytest.raises(ConfigError, match=r"^Job: privacy.epsilon = 2000"):
        fa.Job(privacy={"epsilon": 2000})


# Data


@pytest.mark.parametrize("kind", ["pairs", "columns", "pandas", "file"])
def test_the_same_texts_are_the_same_from_wherever_they_come(kind: str, tmp_path: Path) -> None:
    texts, labels = zip(*ROWS, strict=True)
    shops = [text.split()[-1] for text in texts]
    columns = {"text": texts, "label": labels, "shop": shops}
    source: Any = {"pairs": ROWS, "columns": columns}.get(kind)
    if kind == "pandas":
        source = pytest.importorskip("pandas").DataFrame(columns)
    elif kind == "file":
        source = tmp_path / "rows.jsonl"
        lines = (
            json.dumps(dict(zip(columns, row, strict=True)))
            for row in zip(*columns.values(), strict=True)
        )
        source.write_text("\n".join(lines))
    data = fa.load_data(source)
    assert data.labels == ("no", "yes")
    assert len(data) == 240 - 24 - 24
    assert sum(data.partition(clients=3).sizes) == len(data)
    if kind != "pairs":
        by = data.partition(by="shop")
        assert (by.clients, len(by.sizes)) == (4, 4)


def test_data_shows_its_records_and_who_holds_them() -> None:
    columns = {
        "text": [text for text, _ in ROWS],
        "label": [label for _, label in ROWS],
        "shop": [text.split()[-1] for text, _ in ROWS],
    }
    data = fa.load_data(columns).partition(by="shop")
    assert len(data.records) == len(data) == 192
    assert set(data.records) <= set(ROWS)
    table = data.to_pandas()
    assert sorted(zip(table.text, table.label, strict=True)) == sorted(data.records)
    assert tuple(table.groupby("client").size()) == data.sizes
    assert set(table.groupby("client")["shop"].nunique()) == {1}
    assert set(fa.load_data(ROWS).rows()[0]) == {"text", "label", "client"}


def test_data_says_what_was_left_out_and_how_to_ask_for_it_in_python(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [*ROWS, ("", "no"), ROWS[0], (ROWS[1][0], "no")]
    path.write_text("\n".join(json.dumps({"text": t, "label": lab}) for t, lab in rows))
    with pytest.raises(DataError, match=r"line 241.*leave them out with skip_unusable=True$"):
        fa.load_data(path).labels  # noqa: B018
    with pytest.raises(DataError, match=r"skip_unusable=True$"):
        fa.simulate(small(), fa.load_data(path), progress=False)
    notes = fa.load_data(path, skip_unusable=True).notes
    assert "1 of 243 records cannot be used: a text that is empty" in notes[0]
    assert notes[1] == "3 duplicates and contradictions dropped"
    odd = fa.load_data([*ROWS, ("a thing", "Yes")]).notes
    assert any("differ only in case" in note for note in odd)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: fa.load_data(7), DataError, "give a path, a table with columns, or a list"),
        (lambda: fa.load_data([("a", "b", "c")]), DataError, "give a path, a table"),
        (lambda: fa.load_data("nowhere.csv").labels, DataError, "no such file"),
        (lambda: fa.load_data({"a": ["b"]}).labels, DataError, "name it with text='NAME'$"),
        (lambda: fa.load_data(ROWS, encodings="x"), ConfigError, "encodings: unknown key"),
        (lambda: fa.load_data(ROWS).partition("randomly"), ConfigError, "not known here"),
        (lambda: fa.load_data(ROWS).partition(by="shop"), DataError, "shop"),
    ],
)
def test_data_that_cannot_be_used_is_one_line(make: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


# Runs


def test_a_run_shows_its_numbers_and_its_model_is_of_use(run: fa.Run, tmp_path: Path) -> None:
    assert run.test is not None
    assert run.epsilon is not None
    assert 0 < run.epsilon <= 8
    assert len(run.model_hash) == 64
    assert [row["round"] for row in run.history.rows()] == [1, 2]
    assert set(run.predict(["a good thing", "a bad thing"])) <= {"no", "yes"}
    chances = run.model.probabilities(["a good thing"])
    assert chances.shape == (1, 2)
    assert np.isclose(chances.sum(), 1)
    saved = run.model.save_pretrained(tmp_path / "model")
    assert (saved / "model.safetensors").is_file()
    with pytest.raises(OutputError, match="is there already"):
        run.model.save_pretrained(tmp_path / "model")
    with pytest.raises(DataError, match="none of them empty"):
        run.predict([" "])
    assert run.job.rounds == 2
    assert run.notes == ()


def test_a_notebook_shows_a_run_with_its_plots(run: fa.Run) -> None:
    page = run._repr_html_()
    assert page.count("data:image/png;base64,") == 3
    assert "Test accuracy" in page
    assert run.plot("epsilon").axes
    picture: Any = run.plot("epsilon")
    assert picture._repr_png_()[:4] == b"\x89PNG"
    with pytest.raises(ConfigError, match="this run has accuracy, epsilon, examples"):
        run.plot("beauty")
    assert "<table" in run.history._repr_html_()
    assert "fine-tuned" in repr(run)


def test_a_run_is_written_where_it_is_asked_for_and_loads_again(
    tmp_path: Path, minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del minilm
    data = fa.load_data(ROWS).partition(clients=4)
    seen: list[int] = []
    run = fa.simulate(
        small(), data, out=tmp_path / "runs" / "one", progress=False,
        on_round=lambda result: seen.append(result.round),
    )  # fmt: skip
    assert seen == [1, 2]
    assert (run.folder / "report.html").is_file()
    again = fa.load_run(tmp_path / "runs" / "one")
    assert again.results == run.results
    assert repr(run).startswith("<Run one: ")
    other = fa.simulate(small(), data, out=tmp_path / "runs" / "one", progress=False)
    assert other.folder == tmp_path / "runs" / "one-2"
    assert repr(other).startswith("<Run one-2: ")
    rows = fa.compare([run, again]).rows()
    assert [row["clients"] for row in rows] == [4, 4]
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in a notebook, which Rich takes for a terminal
    assert "test accuracy" in repr(fa.compare([run]))
    assert "\x1b" not in repr(fa.compare([run]))
    with pytest.raises(OutputError, match=r"no results\.json"):
        fa.load_run(tmp_path)
    with pytest.raises(ConfigError, match="one run or more"):
        fa.compare([])


def test_two_runs_with_one_seed_are_one_model(minilm: Path) -> None:
    del minilm
    data = fa.load_data(ROWS).partition(clients=4)
    hashes = {fa.simulate(small(), data, test_seed=3, progress=False).model_hash for _ in range(2)}
    assert len(hashes) == 1


# The lab and the ledger


def test_a_plan_of_a_budget_is_what_the_ledger_charges() -> None:
    found = fa.privacy.plan(epsilon=2, delta=1e-6, records=1000, batch=50, rounds=40)
    assert found.epsilon <= 2
    assert found.rate == 50 / 1024
    again = fa.privacy.plan(
        noise_multiplier=found.noise, delta=1e-6, records=1000, batch=50, rounds=40
    )
    assert again.epsilon == found.epsilon
    assert found.by_accountant()["rdp"] == found.epsilon
    assert found.curve()[-1] == (40, found.epsilon)
    with pytest.raises(ConfigError, match="one of epsilon and noise"):
        fa.privacy.plan(records=10)
    with pytest.raises(ConfigError, match=r"epsilon = 0: .*\(allowed: more than 0 to 1000\)"):
        fa.privacy.plan(epsilon=0)
    with pytest.raises(PrivacyError, match="size class"):
        fa.privacy.plan(epsilon=1, delta=1e-2 / 2, records=1000)


@pytest.mark.parametrize("noise", [1.1, 1.3, 1.7, 2.3, 2.9, 3.7])
def test_a_printed_epsilon_is_never_below_the_computed_one(noise: float) -> None:
    found = fa.privacy.plan(noise_multiplier=noise, delta=1e-6, records=1000, batch=50, rounds=40)
    (printed,) = re.findall(r"epsilon ([0-9.]+) at", str(found))
    assert found.epsilon - 1e-8 <= float(printed) <= found.epsilon + 1e-3


def test_any_one_number_of_a_budget_is_found() -> None:
    job = {"epsilon": 4.0, "noise_multiplier": 2.0, "delta": 1e-6, "records": 1000}
    rounds = fa.privacy.plan(find="rounds", sampling_rate=0.05, **job)
    assert rounds.epsilon <= 4
    assert rounds.rounds > 1
    rate = fa.privacy.plan(find="rate", rounds=rounds.rounds, **job)
    assert rate.rate >= 0.05
    for unknown, needed in (("noise", "epsilon"), ("epsilon", "noise"), ("rate", "noise")):
        given = {"epsilon": 2.0} if needed == "noise" and unknown == "rate" else {}
        with pytest.raises(ConfigError, match=f"to find the {unknown}, give the {needed} as well"):
            fa.privacy.plan(find=unknown, **given)
    with pytest.raises(ConfigError, match="rounds is what is to be found"):
        fa.privacy.plan(find="rounds", epsilon=1, noise_multiplier=1, rounds=7)
    with pytest.raises(ConfigError, match="give one of noise, epsilon, rounds, rate"):
        fa.privacy.plan(find="delta", epsilon=1)


def test_a_lower_bound_of_any_scores() -> None:
    random = np.random.default_rng(1)
    told = fa.privacy.lower_bound(random.normal(9, 1, 200), random.normal(0, 1, 200), delta=1e-5)
    assert told.lower > 3
    nothing = fa.privacy.lower_bound(random.normal(size=200), random.normal(size=200), delta=1e-5)
    assert nothing.lower < 0.5


@pytest.mark.parametrize(
    ("scores", "others", "why"),
    [
        ([float("nan"), 1.0], {"delta": 1e-5}, "NaN"),
        ([1.0, 2.0], {"delta": 1.0}, "below 1"),
        ([1.0, 2.0], {"delta": 1e-5, "confidence": 1.0}, "between 0 and 1"),
        ([], {"delta": 1e-5}, "two canaries"),
    ],
)
def test_what_is_no_score_is_refused(
    scores: list[float], others: dict[str, float], why: str
) -> None:
    with pytest.raises(PrivacyError, match=why):
        fa.privacy.lower_bound(scores, [0.5][: len(scores)], **others)


def test_a_ledger_opens_by_its_folder_and_knows_rounds_of_a_job(tmp_path: Path) -> None:
    made = fa.Ledger.create(
        tmp_path / "ledger.jsonl", SigningKey(), lifetime_epsilon=8.0, delta=1e-5, filter_kind=4.0
    )
    ledger = fa.Ledger.open(tmp_path)
    assert ledger.spent == 0
    left = ledger.rounds_left(fa.Job(privacy=fa.DPSGD(noise_multiplier=2.0, sampling_rate=0.1)))
    assert left == made.rounds_left(dp_sgd(2.0, 0.1)) > 0


def test_a_job_is_attacked_in_one_call(minilm: Path) -> None:
    del minilm
    job = small(privacy=fa.DPSGD(epsilon=4, clip_norm=0.2), server=fa.FedAvg())
    report = fa.privacy.audit(job, fa.load_data(ROWS).partition(clients=4), canaries=40)
    (found,) = report.settings
    assert found.canary.promised is not None
    assert not report.contradictions
    assert found.canary.bound.canaries == 40
    (row,) = report.rows()
    assert (row["epsilon"], row["promised"]) == (4, found.canary.promised)
    assert "promised" in report._repr_html_()


def test_an_audit_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "simulations" / "results" / "audit" / "audit.json"
    report = fa.load_audit(path.parent)
    assert report.to_json() == path.read_text(encoding="utf-8")
    assert [row["epsilon"] for row in report.rows()] == [None, 8, 4, 2, 1]
    for content in (
        "[]",
        "{}",
        '{"format": "fedaipc audit"}',
        path.read_text().replace("pcs", "p"),
    ):
        (tmp_path / "audit.json").write_text(content)
        with pytest.raises(OutputError, match="is not what `fedaipc privacy audit` writes"):
            fa.load_audit(tmp_path)
    with pytest.raises(OutputError, match="cannot be read"):
        fa.load_audit(tmp_path / "nothing.json")
