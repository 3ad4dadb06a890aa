"""From texts per second to minutes, bytes, watt-hours and money of a job."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, ValidationError

from fedaipc import bounds
from fedaipc.config import Frozen
from fedaipc.errors import ConfigError
from fedaipc.secagg.keys import SIGNATURE_BYTES
from fedaipc.secagg.roster import MAX_IN_A_GROUP
from fedaipc.secagg.round_keys import BLOB_BYTES, CARD_BYTES, COMMITMENT_BYTES
from fedaipc.secagg.shares import SHARE_BYTES
from fedaipc.secagg.uploads import HEADER_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from fedaipc.config import Settings
    from fedaipc.doctor.probe import Speed

_JOB, _BUNDLE, _SIGNED = 1100, 207, 130  # bytes, as measured with all that is around them

Money = Annotated[float, Field(ge=0, le=1e6)]
Rate = Annotated[float, Field(gt=0, le=1e9)]


class PcPrice(Frozen):
    """What this PC's hours cost."""

    watts: Rate
    dollars_per_kwh: Money
    dollars_per_hour: Money = 0.0


class GpuPrice(Frozen):
    """What a rented GPU costs; `texts_per_second` as measured there for the same job, if known."""

    name: str = Field(min_length=1, max_length=80)
    dollars_per_hour: Money
    watts: Rate
    texts_per_second: Rate | None = None


class Prices(Frozen):
    """A price table."""

    pc: PcPrice
    gpu: tuple[GpuPrice, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuCost:
    """The same job on a rented GPU. R is how many times as fast as this PC it is.

    `break_even` is the R above which the GPU is cheaper than this PC's hours; None where these
    cost nothing.
    """

    name: str
    break_even: float | None
    speed_up: float | None
    hours: float | None
    dollars: float | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a whole job takes. `fleet_minutes` is what one PC of a real fleet computes for its own
    texts.
    """

    texts: int
    minutes: float
    fleet_minutes: float
    bytes_up: int
    bytes_down: int
    watts: float
    watts_measured: bool
    watt_hours: float
    dollars: float
    gpus: tuple[GpuCost, ...]


def read_prices(path: Path | None) -> Prices:
    """The table at `path`, or the one that comes with fedaipc. Raises ConfigError."""
    name = "prices.toml" if path is None else str(path)
    try:
        text = (
            files("fedaipc.doctor").joinpath("prices.toml").read_text(encoding="utf-8")
            if path is None
            else bounds.read_text(path, bounds.MAX_SETTINGS)
        )
        return Prices.model_validate(tomllib.loads(text))
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{name}: not valid TOML: nested too deep") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{name}: {where}: {first['msg']}") from None


def forecast(
    settings: Settings,
    speed: Speed,
    *,
    records: int,
    held_back: int,
    parameters: int,
    prices: Prices,
    watts: float | None,
) -> Forecast:
    """What the job takes, where this PC computes everything (`minutes`) or its share of it.

    `records` are the training texts of all PCs, `held_back` those of validation and test,
    `parameters` the trained ones. `watts` is this PC's measured power, None to use the table's
    value. Bytes are of all PCs and rounds, sealing included, to within a tenth.
    """
    federation, privacy = settings.federation, settings.privacy
    cohort = federation.cohort_size(federation.clients)
    passes = settings.rounds * settings.training.local_steps * privacy.sampling_rate
    passes *= cohort / federation.clients
    rate = speed.private if privacy.kind != "none" else speed.ordinary
    once = 0.0 if speed.frozen is None else 1 / speed.frozen
    seconds = records * (once + passes / rate) + held_back * once
    fleet = records / federation.clients * (once + passes / rate)
    power = watts or prices.pc.watts
    hours = seconds / 3600
    pc_hour = power / 1000 * prices.pc.dollars_per_kwh + prices.pc.dollars_per_hour
    up, down = round_bytes(settings, cohort, parameters)
    return Forecast(
        texts=records,
        minutes=seconds / 60,
        fleet_minutes=fleet / 60,
        bytes_up=up * cohort * settings.rounds,
        bytes_down=down * cohort * settings.rounds,
        watts=power,
        watts_measured=watts is not None,
        watt_hours=hours * power,
        dollars=hours * pc_hour,
        gpus=tuple(on_gpu(gpu, rate, hours, pc_hour) for gpu in prices.gpu),
    )


def round_bytes(settings: Settings, cohort: int, parameters: int) -> tuple[int, int]:
    """Bytes of one PC in one round, up and down."""
    up, down = parameters * settings.aggregation.bits // 8, parameters * 4 + 2 * _JOB
    if settings.aggregation.kind == "plain":
        return up, down
    group = cohort // -(-cohort // MAX_IN_A_GROUP)
    # So many members agree and unmask; what one of them gets and sends is shared among all below.
    asked = (group + max(1, group // 10)) // 2 + 1
    # Up: what a PC shares out, and its header; then a share of each PC.
    up += group * (BLOB_BYTES + 2 * COMMITMENT_BYTES) + 2 * _SIGNED + asked * SHARE_BYTES
    # Down: everybody's bundle when a PC is asked whether it takes part. The same and everybody's
    # round key when it trains. All headers when the group agrees. Those, the signatures and
    # everybody's blob for this PC when it unmasks.
    down += group * (2 * _BUNDLE + CARD_BYTES)
    down += asked * (2 * (HEADER_BYTES + SIGNATURE_BYTES) + BLOB_BYTES + _SIGNED * asked // group)
    return up, down


def on_gpu(gpu: GpuPrice, rate: float, hours: float, pc_hour: float) -> GpuCost:
    """What takes PCs `hours` at `rate` texts per second, on `gpu`; `pc_hour` is their price."""
    ratio = None if gpu.texts_per_second is None else gpu.texts_per_second / rate
    return GpuCost(
        name=gpu.name,
        break_even=gpu.dollars_per_hour / pc_hour if pc_hour else None,
        speed_up=ratio,
        hours=None if ratio is None else hours / ratio,
        dollars=None if ratio is None else hours / ratio * gpu.dollars_per_hour,
    )
