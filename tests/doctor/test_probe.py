"""The probe measures real training, and takes the least that is as fast as the best."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fedaipc.config import settings_from
from fedaipc.doctor import probe as module
from fedaipc.doctor.machine import PowerMeter, this_machine
from fedaipc.doctor.probe import Speed, _micro_batch, _threads, probe
from tests.support.tiny_models import TEXTS, shared_folder


@pytest.fixture(autouse=True)
def _threads_back() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def made(method: str, **privacy: Any) -> Any:
    return settings_from(
        {
            "model": {"base": str(shared_folder("bert")), "train": method, "max_length": 16},
            "privacy": {"epsilon": 8.0, **privacy},
            "speed": {"device": "cpu"},
        }
    )


@pytest.mark.parametrize("method", ["head", "lora", "full"])
def test_every_speed_is_measured_by_training_and_the_best_comes_first(method: str) -> None:
    before = torch.get_num_threads()
    settings = made(method)
    found = probe(settings, TEXTS)
    passes = settings.rounds * settings.privacy.sampling_rate
    assert {speed.precision for speed in found} == set(module._precisions("cpu", "float32"))
    times = [speed.seconds(passes) for speed in found]
    assert times == sorted(times)
    for speed in found:
        assert speed.device == "cpu"
        assert min(speed.ordinary, speed.private) > 0
        assert (speed.frozen is None) == (method == "full")
        assert (
            speed.micro_batch == 256 if method == "head" else speed.micro_batch in {8, 16, 32, 64}
        )
    assert torch.get_num_threads() == before


def test_bfloat16_is_measured_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module._precisions("cuda", "float32") == ("float32", "bfloat16")
    monkeypatch.setattr(module, "features", lambda: ("AVX2",))
    assert module._precisions("cpu", "float32") == ("float32",)
    assert module._precisions("cpu", "bfloat16") == ("float32", "bfloat16")  # it was asked for
    monkeypatch.setattr(module, "features", lambda: ("AVX512", "bfloat16 (AVX-512)"))
    assert module._precisions("cpu", "float32") == ("float32", "bfloat16")


def test_a_job_takes_its_frozen_layers_once_and_its_passes() -> None:
    assert Speed("cpu", "float32", 2, 16, 100.0, 1.0, 50.0).seconds(10) == pytest.approx(0.21)
    assert Speed("cpu", "float32", 2, 16, None, 1.0, 50.0).seconds(10) == pytest.approx(0.2)


def test_settings_that_are_given_are_kept() -> None:
    settings = settings_from(
        {
            "model": {"base": str(shared_folder("bert")), "train": "lora", "max_length": 16},
            "privacy": {"kind": "none"},
            "speed": {"device": "cpu", "micro_batch": 5, "threads": 1},
        }
    )
    for speed in probe(settings, TEXTS):
        assert (speed.micro_batch, speed.threads) == (5, 1)


def test_the_fewest_threads_within_three_percent_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cpus", lambda: 8)
    monkeypatch.setattr(
        "fedaipc.doctor.probe.psutil.cpu_count", lambda *, logical: 8 if logical else 4
    )
    speeds = {1: 50.0, 2: 90.0, 4: 100.0, 8: 102.0}
    assert _threads(lambda: speeds[torch.get_num_threads()]) == 4
    assert torch.get_num_threads() == 4


def test_the_smallest_micro_batch_within_three_percent_is_taken() -> None:
    assert _micro_batch({8: 70.0, 16: 98.0, 32: 100.0, 64: 99.0}.__getitem__) == 16


def test_memory_that_runs_out_ends_the_search() -> None:
    def rate(size: int) -> float:
        if size > 16:
            raise MemoryError
        return float(size)

    assert _micro_batch(rate) == 16

    def never(size: int) -> float:
        raise RuntimeError("not enough memory")

    assert _micro_batch(never) == 1


def test_a_machine_says_what_it_has() -> None:
    machine = this_machine()
    assert machine.processor
    assert machine.cores >= 1
    assert 0 < machine.free_bytes <= machine.memory_bytes
    assert machine.features[0] == torch.backends.cpu.get_cpu_capability()


def test_power_is_read_where_the_system_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedaipc.doctor import machine

    monkeypatch.setattr(machine, "_RAPL", tmp_path)
    assert PowerMeter().watts() is None
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    (package / "energy_uj").write_text("1000000\n")
    now = iter([10.0, 12.0])
    monkeypatch.setattr("fedaipc.doctor.machine.time.monotonic", lambda: next(now))
    meter = PowerMeter()
    (package / "energy_uj").write_text("31000000\n")
    assert meter.watts() == pytest.approx(15.0)


def test_what_was_saved_fills_what_a_job_leaves_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedaipc.doctor.saved import save, with_saved

    monkeypatch.setenv("FEDAIPC_CACHE", str(tmp_path / "cache"))
    settings = made("lora")
    assert with_saved(settings, "mine") == settings
    save(settings, "mine", Speed("cpu", "float32", 3, 32, None, 1.0, 1.0))
    filled = with_saved(settings, "mine").speed
    assert (filled.threads, filled.micro_batch) == (3, 32)
    assert with_saved(settings, "another processor") == settings
    assert with_saved(made("full"), "mine") == made("full")
    given = settings_from({**settings.model_dump(exclude_none=True),
                           "speed": {"device": "cpu", "threads": 1}})  # fmt: skip
    assert (with_saved(given, "mine").speed.threads, given.speed.micro_batch) == (1, 0)
    (tmp_path / "cache" / "doctor.json").write_text("{broken")
    assert with_saved(settings, "mine") == settings


def test_what_was_measured_for_a_pc_is_in_its_owners_file(tmp_path: Path) -> None:
    from fedaipc.config import OwnerSettings, load_owner, to_toml
    from fedaipc.doctor.saved import save_for_pc

    owner = OwnerSettings(
        name="pc", source="x.csv", size_class=64, base="minilm-l6", admission="0" * 64
    )
    (tmp_path / "owner.toml").write_text(to_toml(owner))
    slow = Speed("cpu", "float32", 3, 32, None, 1.0, 1.0)
    changed = load_owner(save_for_pc(tmp_path, [slow], slow))
    speed = owner.speed.model_copy(update={"threads": 3, "micro_batch": 32})
    assert changed == owner.model_copy(update={"speed": speed})
    assert speed.precision == "float32"
    quick = Speed("cpu", "bfloat16", 2, 16, None, 2.0, 2.0)
    other = Speed("cuda:0", "bfloat16", 1, 64, None, 9.0, 9.0)  # not the one that this PC uses
    speed = load_owner(save_for_pc(tmp_path, [other, quick, slow], slow)).speed
    assert (speed.precision, speed.threads, speed.micro_batch) == ("bfloat16", 2, 16)


def test_what_a_pc_is_asked_to_measure_goes_before_its_owners_file(tmp_path: Path) -> None:
    from fedaipc.cli.doctor import _of_pc
    from fedaipc.config import OwnerSettings, SpeedSettings, to_toml

    owner = OwnerSettings(
        name="pc", source="x.csv", size_class=64, base="minilm-l6", admission="0" * 64,
        speed=SpeedSettings(threads=3),
    )  # fmt: skip
    (tmp_path / "owner.toml").write_text(to_toml(owner))
    asked = settings_from({"speed": {"precision": "bfloat16"}})
    speed = _of_pc(asked, tmp_path).speed
    assert (speed.precision, speed.threads) == ("bfloat16", 3)
    assert _of_pc(settings_from({}), tmp_path).speed == owner.speed


def test_of_what_was_not_measured_nothing_is_said_but_how_to(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from fedaipc.cli.doctor import _show_speeds
    from fedaipc.cli.output import make_console

    _show_speeds(make_console(), [Speed("cpu", "float32", 3, 32, None, 1.0, 1.0)])
    said = " ".join(capsys.readouterr().out.split())
    assert "not measured, this processor has no instructions for it" in said
    assert "--set speed.precision=bfloat16 measures it" in said
    assert "slower" not in said
