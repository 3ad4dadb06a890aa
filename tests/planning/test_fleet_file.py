"""A fleet file that can be read, and one line for each that cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedaipc.config import load_settings
from fedaipc.errors import ConfigError
from fedaipc.planning.fleet import fleet_from, read_doctor, read_fleet
from fedaipc.planning.load import make_pcs
from tests.support.fleets_planned import ONE, a_fleet, a_job

SIMULATIONS = Path(__file__).parents[2] / "simulations"
CLASS = '[[classes]]\nname = "a"\nshare = 1.0\n'
SPEED = "texts_per_second = 9.0\n"


def report(**changes: Any) -> dict[str, Any]:
    """What `fedaipc doctor --json` prints, of which much is not used here."""
    speed = {
        "device": "cpu", "precision": "float32", "threads": 2, "micro_batch": 8, "frozen": 200.0,
        "ordinary": 60.0, "private": 50.0,
    }  # fmt: skip
    quick = {**speed, "precision": "bfloat16", "private": 90.0}
    return {
        "machine": {"cores": 2}, "speeds": [quick, speed], "speed_up": None, "parameters": 770,
        "forecast": {"texts": 72, "watts": 21.0, "watts_measured": True}, **changes,
    }  # fmt: skip


def written(folder: Path, content: Any) -> Path:
    path = folder / "pc.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_the_example_can_be_read() -> None:
    fleet = read_fleet(SIMULATIONS / "fleets" / "office.toml")
    pcs, measured = make_pcs(load_settings(SIMULATIONS / "demo.toml"), fleet, SIMULATIONS, 65.0)
    assert pcs.available.shape == (24, len(fleet.classes))
    assert measured is None
    assert pcs.share.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[classes\n", "not valid TOML"),
        ("texts = 5\n", "classes"),
        (CLASS, 'class "a": give one of texts_per_second and doctor'),
        (CLASS + SPEED + 'doctor = "x.json"\n', "give one of texts_per_second and doctor"),
        (CLASS + SPEED + "factor = 2.0\n", "factor is of a doctor file"),
        (CLASS + 'doctor = "x"\nfrozen_texts_per_second = 1.0\n', "comes from doctor"),
        (CLASS.replace("1.0", "0.7") + SPEED, "shares add up to 0.7"),
        (CLASS.replace("1.0", "0.5") * 2 + SPEED, "give one of texts_per_second"),
        (CLASS + SPEED + "upmbit = 3\n", "unknown key; did you mean up_mbit?"),
        (CLASS + SPEED + "watts = 0\n", "classes.watts = 0: input should be greater than 0"),
        (CLASS + SPEED + "watts = true\n", "true and false are not allowed"),
        (CLASS + SPEED + "available = 1.5\n", "from 0 to 1"),
        (CLASS + SPEED + "available = [0.1, 0.2]\n", "one for each of the 24 hours"),
        (CLASS + SPEED + "[dropout]\nmask = 2\n", "dropout.mask = 2"),
        (CLASS + SPEED + "[sever]\n", "did you mean server?"),
        ("start_hour = 24\n" + CLASS + SPEED, "start_hour = 24"),
        (
            (CLASS.replace("1.0", "0.5") + SPEED) * 2,
            "classes: two of them have one name",
        ),
    ],
)
def test_a_broken_file_is_one_line_with_its_name(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "fleet.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        read_fleet(path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_fleet(tmp_path / "none.toml")


def test_one_number_stands_for_every_hour() -> None:
    assert fleet_from({"classes": [ONE], "available": 0.3}).available == (0.3,)
    pcs, _ = make_pcs(a_job(), a_fleet({**ONE, "available": 0.25}), Path(), 65.0)
    assert pcs.available.tolist() == [[0.25]] * 24


def test_a_doctor_file_gives_speed_watts_and_values(tmp_path: Path) -> None:
    written(tmp_path, report())
    measured = {"name": "a", "share": 1.0, "doctor": "pc.json", "factor": 2.0}
    pcs, values = make_pcs(a_job(), a_fleet(measured), tmp_path, 65.0)
    assert values == 770
    # Twice as fast as 50 texts a second, in the precision of the job; the frozen part alike.
    assert pcs.train.tolist() == [1000 / 100]
    assert pcs.prepare.tolist() == [1000 / 400]
    assert pcs.watts.tolist() == [21.0]
    open_, _ = make_pcs(a_job(privacy={"kind": "none"}), a_fleet(measured), tmp_path, 65.0)
    assert open_.train.tolist() == [1000 / 120]


def test_watts_that_doctor_did_not_measure_are_the_tables(tmp_path: Path) -> None:
    written(tmp_path, report(forecast={"watts": 65.0, "watts_measured": False}))
    fleet = a_fleet({"name": "a", "share": 1.0, "doctor": "pc.json"})
    assert make_pcs(a_job(), fleet, tmp_path, 40.0)[0].watts.tolist() == [40.0]


def test_a_pass_over_the_texts_is_the_jobs() -> None:
    job = a_job(privacy={"delta": 1e-6, "sampling_rate": 0.1}, training={"local_steps": 4})
    pcs, _ = make_pcs(job, a_fleet(), Path(), 65.0)
    assert pcs.train.tolist() == pytest.approx([4 * 0.1 * 1000 / 10])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "not what doctor prints"),
        ({**report(), "speeds": []}, "not what doctor prints (speeds)"),
        ({**report(), "parameters": 0}, "not what doctor prints (parameters)"),
    ],
)
def test_another_file_in_place_of_doctors_is_one_line(
    tmp_path: Path, content: Any, said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_doctor(written(tmp_path, content))
    assert said in str(caught.value)
    assert "fedaipc doctor JOB --json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_doctor_file_that_is_missing_or_damaged_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_doctor(tmp_path / "none.json")
    (tmp_path / "pc.json").write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="not JSON"):
        read_doctor(tmp_path / "pc.json")


def test_doctor_files_of_two_jobs_are_refused(tmp_path: Path) -> None:
    written(tmp_path, report())
    (tmp_path / "b.json").write_text(json.dumps(report(parameters=9)), encoding="utf-8")
    two = [{"name": n, "share": 0.5, "doctor": f"{n}.json"} for n in ("pc", "b")]
    with pytest.raises(ConfigError, match=r"pc: 770, b: 9 trained values"):
        make_pcs(a_job(), a_fleet(*two), tmp_path, 65.0)
