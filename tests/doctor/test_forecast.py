"""Minutes, bytes, watt-hours and money, by hand; and a price table that cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedaipc.config import load_settings, settings_from
from fedaipc.doctor.forecast import GpuPrice, PcPrice, Prices, forecast, read_prices
from fedaipc.doctor.probe import Speed
from fedaipc.errors import ConfigError
from fedaipc.results import Results

SIMULATIONS = Path(__file__).parent.parent.parent / "simulations"

SPEED = Speed("cpu", "float32", 2, 16, frozen=100.0, ordinary=250.0, private=200.0)
PRICES = Prices(
    pc=PcPrice(watts=50, dollars_per_kwh=0.2, dollars_per_hour=0.01),
    gpu=(
        GpuPrice(name="unmeasured", dollars_per_hour=0.4, watts=75),
        GpuPrice(name="measured", dollars_per_hour=2.0, watts=700, texts_per_second=8000),
    ),
)


def made(speed: Speed = SPEED, watts: float | None = None, **privacy: Any) -> Any:
    settings = settings_from(
        {
            "privacy": {"sampling_rate": 0.25, **privacy},
            "training": {"local_steps": 4},
            "rounds": 30,
            "federation": {"clients": 10},
            "aggregation": {"bits": 24},
        }
    )
    return forecast(
        settings, speed, records=12_000, held_back=1_000, parameters=770, prices=PRICES, watts=watts
    )


def test_minutes_are_frozen_layers_once_and_every_step() -> None:
    # 30 rounds of 4 steps over a quarter: 30 passes over 12,000 texts at 200 a second.
    seconds = 12_000 / 100 + 1_000 / 100 + 30 * 12_000 / 200
    future = made()
    assert future.minutes == pytest.approx(seconds / 60)
    assert future.fleet_minutes == pytest.approx((1_200 / 100 + 30 * 1_200 / 200) / 60)
    assert future.watt_hours == pytest.approx(seconds / 3600 * 50)
    assert future.dollars == pytest.approx(seconds / 3600 * (0.05 * 0.2 + 0.01))


def test_without_privacy_the_ordinary_speed_counts_and_without_frozen_layers_no_time() -> None:
    open_ = made(kind="none")
    assert open_.minutes == pytest.approx((130 + 30 * 12_000 / 250) / 60)
    unfrozen = Speed("cpu", "float32", 2, 16, frozen=None, ordinary=250.0, private=200.0)
    assert made(unfrozen).minutes == pytest.approx(30 * 12_000 / 200 / 60)


def test_bytes_in_the_open_are_those_of_the_vectors() -> None:
    settings = settings_from(
        {
            "privacy": {"epsilon": 8.0},
            "rounds": 30,
            "federation": {"clients": 10},
            "aggregation": {"kind": "plain", "bits": 24},
        }
    )
    future = forecast(
        settings, SPEED, records=10, held_back=0, parameters=770, prices=PRICES, watts=None
    )
    assert future.bytes_up == 770 * 3 * 10 * 30
    assert future.bytes_down == (770 * 4 + 2 * 1100) * 10 * 30  # the signed job travels twice


def test_sealed_bytes_are_those_of_the_committed_demo_to_within_a_tenth() -> None:
    run = Results.model_validate_json((SIMULATIONS / "results" / "demo.json").read_text("utf-8"))
    future = forecast(
        load_settings(SIMULATIONS / "demo.toml"), SPEED, records=10, held_back=0,
        parameters=run.model.trainable_parameters, prices=PRICES, watts=None,
    )  # fmt: skip
    assert future.bytes_up == pytest.approx(sum(r.bytes_up for r in run.rounds), rel=0.1)
    assert future.bytes_down == pytest.approx(sum(r.bytes_down for r in run.rounds), rel=0.1)


def test_measured_watts_go_before_the_table() -> None:
    assert (made().watts, made().watts_measured) == (50, False)
    assert (made(watts=20.0).watts, made(watts=20.0).watts_measured) == (20.0, True)


def test_a_gpu_is_cheaper_from_the_break_even_speed_up_on() -> None:
    unmeasured, measured = made().gpus
    assert unmeasured.break_even == pytest.approx(0.4 / 0.02)
    assert (unmeasured.speed_up, unmeasured.hours, unmeasured.dollars) == (None, None, None)
    assert measured.speed_up == pytest.approx(8000 / 200)
    hours = made().minutes / 60
    assert measured.hours == pytest.approx(hours / 40)
    assert measured.dollars == pytest.approx(hours / 40 * 2.0)
    # Where R is the break-even, both cost the same.
    assert hours / measured.break_even * 2.0 == pytest.approx(made().dollars)


def test_hours_that_cost_nothing_have_no_break_even() -> None:
    free = PRICES.model_copy(update={"pc": PcPrice(watts=50, dollars_per_kwh=0)})
    settings = settings_from({"privacy": {"epsilon": 8.0}})
    future = forecast(
        settings, SPEED, records=10, held_back=0, parameters=1, prices=free, watts=None
    )
    assert [gpu.break_even for gpu in future.gpus] == [None, None]
    assert future.dollars == 0


def test_the_table_that_comes_along_can_be_read() -> None:
    prices = read_prices(None)
    assert prices.pc.watts > 0
    assert len(prices.gpu) >= 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[pc\n", "not valid TOML"),
        ("[pc]\nwatts = 0\ndollars_per_kwh = 0.3\n", "pc.watts"),
        ("[pc]\nwatts = 9\n", "pc.dollars_per_kwh"),
        ("[pc]\nwatts = 9\ndollars_per_kwh = 0.3\ndolars = 3\n", "pc.dolars"),
        ("[[gpu]]\nname = 'a'\n", "pc"),
    ],
)
def test_a_broken_table_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said) as caught:
        read_prices(path)
    assert "\n" not in str(caught.value)


def test_a_table_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prices(tmp_path / "none.toml")
