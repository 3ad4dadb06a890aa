"""`fedaipc plan fleet` and `fa.plan_fleet`: the same answer, and one line where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import fedaipc as fa
from fedaipc.errors import ConfigError
from tests.support.commands import refused
from tests.support.tiny_models import make_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.commands import Ran

FLEET = """
parameters = 770
[[classes]]
name = "office"
share = 0.75
texts_per_second = 50.0
available = 0.9
[[classes]]
name = "old"
share = 0.25
texts_per_second = 10.0
[dropout]
mask = 0.02
"""
JOB = "rounds = 3\n[privacy]\ndelta = 1e-6\n"
WORDS = ("plan", "fleet", "job.toml", "--fleet", "fleet.toml", "--repeats", 3)


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fleet.toml").write_text(FLEET, encoding="utf-8")
    Path("job.toml").write_text(JOB, encoding="utf-8")


def test_tables_and_json_say_the_same_as_python(fedaipc: Callable[..., Ran]) -> None:
    ran = fedaipc(*WORDS, "--clients", "10,100")
    assert ran.code == 0, ran.err
    for word in ("3 rounds, 770 trained values", "medians of 3", "100", "kWh", "break-even"):
        assert word in ran.out
    report = json.loads(fedaipc(*WORDS, "--clients", "10,100", "--json").out)
    assert [one["clients"] for one in report["fleets"]] == [10, 100]
    assert report["fleets"][0]["finished"] == 1.0
    plan = fa.plan_fleet(fa.Job.from_toml("job.toml"), "fleet.toml", clients=(10, 100), repeats=3)
    assert json.loads(json.dumps(plan.to_dict())) == report


def test_a_price_table_with_a_measured_gpu_gives_ratios(fedaipc: Callable[..., Ran]) -> None:
    Path("prices.toml").write_text(
        "[pc]\nwatts = 50\ndollars_per_kwh = 0.2\n"
        "[[gpu]]\nname = 'mine'\ndollars_per_hour = 1.0\nwatts = 300\ntexts_per_second = 1e4\n",
        encoding="utf-8",
    )
    words = (*WORDS, "--clients", "20", "--prices", "prices.toml", "--json")
    (fleet,) = json.loads(fedaipc(*words).out)["fleets"]
    (gpu,) = fleet["gpus"]
    assert gpu["name"] == "mine"
    assert gpu["speed_up"] > 200
    assert gpu["cost_ratio"] == pytest.approx(fleet["dollars"]["median"] / gpu["dollars"])


def test_a_plot_is_written(fedaipc: Callable[..., Ran]) -> None:
    ran = fedaipc(*WORDS, "--clients", "10,20", "--plot", "fleet.png")
    assert "wrote fleet.png" in ran.out
    assert Path("fleet.png").read_bytes().startswith(b"\x89PNG")


def test_a_fleet_that_cannot_do_it_is_a_line_and_no_error(fedaipc: Callable[..., Ran]) -> None:
    ran = fedaipc(*WORDS, "--clients", "2,10")
    assert ran.code == 0, ran.err
    assert "2 PCs: 100% of the runs do not finish" in " ".join(ran.out.split())


def test_the_model_is_opened_where_nobody_says_its_values(
    fedaipc: Callable[..., Ran], tmp_path: Path
) -> None:
    base = make_folder(tmp_path / "tiny", "bert")
    Path("fleet.toml").write_text(FLEET.replace("parameters = 770\n", ""), encoding="utf-8")
    words = (*WORDS, "--clients", "3", "--json", "--set", f"model.base={base}",
             "--set", "model.max_length=16")  # fmt: skip
    ran = fedaipc(*words)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["parameters"] == 2 * (16 + 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--clients", "10,many"), "--clients 10,many: give whole numbers"),
        (("--clients", "0"), "give numbers of PCs from 1"),
        (("--fleet", "none.toml"), "none.toml: no such file"),
        (("--prices", "none.toml"), "none.toml: cannot be read"),
        (("--set", "federation.only=[0,1,2]"), "federation.only"),
        (("--set", "rounds=0"), "rounds = 0"),
    ],
)
def test_bad_input_is_one_line(
    fedaipc: Callable[..., Ran], words: tuple[Any, ...], said: str
) -> None:
    assert said in refused(fedaipc(*WORDS, *words), 2)


def test_a_plot_with_another_ending_is_one_line(fedaipc: Callable[..., Ran]) -> None:
    assert ".png or .svg" in refused(fedaipc(*WORDS, "--clients", "3", "--plot", "x.jpg"), 12)


def test_python_takes_a_mapping_and_has_the_same_errors() -> None:
    fleet = {"parameters": 770, "classes": [{"name": "a", "share": 1.0, "texts_per_second": 5.0}]}
    plan = fa.plan_fleet(fa.Job(rounds=2), fleet, clients=[5], repeats=1)
    assert plan.fleets[0].finished == 1.0
    with pytest.raises(ConfigError, match="shares add up to 0"):
        fa.plan_fleet(fa.Job(), {"classes": []})
    with pytest.raises(ConfigError, match="give a Job"):
        fa.plan_fleet("job.toml", fleet)  # type: ignore[arg-type]
