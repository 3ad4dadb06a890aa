"""Which device is taken, and that it says why."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedaipc.config import SpeedSettings
from fedaipc.errors import ModelError
from fedaipc.model.device import choose_device


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A machine with just the devices named."""

    def has(*names: str) -> None:
        for name, owner in (
            ("cuda", torch.cuda), ("xpu", torch.xpu), ("mps", torch.backends.mps),
        ):  # fmt: skip
            monkeypatch.setattr(owner, "is_available", lambda name=name: name in names)

    return has


@pytest.mark.parametrize(
    ("present", "taken", "reason"),
    [
        ((), "cpu", "no cuda, xpu, mps here"),
        (("mps",), "mps", "mps is present"),
        (("xpu", "mps"), "xpu", "xpu is present"),
        (("cuda", "xpu", "mps"), "cuda", "cuda is present"),
    ],
)
def test_the_best_device_present_is_taken_and_says_why(
    machine: Any, present: tuple[str, ...], taken: str, reason: str
) -> None:
    machine(*present)
    device = choose_device(SpeedSettings())
    assert (device.torch.type, device.dtype) == (taken, "float32")
    assert device.reason.startswith(reason)
    assert "float32" in device.reason


def test_a_device_asked_for_is_taken_even_where_a_better_one_is(machine: Any) -> None:
    machine("cuda")
    device = choose_device(SpeedSettings(device="cpu"))
    assert device.torch.type == "cpu"
    assert device.reason.startswith("asked for in speed.device")


@pytest.mark.parametrize("name", ["cuda", "xpu", "mps"])
def test_a_device_that_is_not_there_is_refused_in_one_line(machine: Any, name: str) -> None:
    machine()
    with pytest.raises(ModelError, match=rf"^speed.device = {name}: .*\(has: cpu\)$"):
        choose_device(SpeedSettings(device=name))


def test_threads_are_set_only_where_asked_for(machine: Any) -> None:
    machine()
    before = torch.get_num_threads()
    choose_device(SpeedSettings())
    assert torch.get_num_threads() == before
    choose_device(SpeedSettings(threads=before + 1))
    assert torch.get_num_threads() == before + 1


def test_bfloat16_only_where_asked_for(machine: Any) -> None:
    machine()
    assert choose_device(SpeedSettings()).dtype == "float32"
    device = choose_device(SpeedSettings(precision="bfloat16"))
    assert (device.dtype, "bfloat16" in device.reason) == ("bfloat16", True)
