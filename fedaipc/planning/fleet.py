"""The fleet file: which PCs there are, when they are there, and what lies between them and the
server.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from fedaipc import strict_json
from fedaipc.config import Section, read_toml, validated
from fedaipc.doctor.forecast import Money, Rate
from fedaipc.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

HOURS = 24
MAX_CLASSES = 50
_SHARES = 1e-6  # by which the shares may miss 1
_MAX_REPORT = 1 << 22  # bytes of a doctor's file

Chance = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0, le=86_400)]
Hours = Annotated[
    tuple[Chance, ...],
    BeforeValidator(lambda given: (given,) if isinstance(given, int | float) else given),
]


class SpeedClass(Section):
    """PCs that are alike: how many, how fast, when they are there, on what network.

    Give texts_per_second, or doctor: what `fedaipc doctor JOB --json` printed on such a PC.
    """

    name: str = Field(min_length=1, max_length=80, description="of the class, for tables")
    share: float = Field(gt=0, le=1, description="of the fleet; all shares add up to 1")
    texts: int | None = Field(
        None, ge=1, le=100_000_000, description="records of one PC; default: the fleet's"
    )
    doctor: str | None = Field(
        None,
        min_length=1,
        description="file with the output of fedaipc doctor --json for the same job, relative to "
        "this file",
    )
    factor: Rate = Field(1.0, description="how many times as fast as what doctor measured")
    texts_per_second: Rate | None = Field(
        None, description="that such a PC trains with this job, in place of doctor"
    )
    frozen_texts_per_second: Rate | None = Field(
        None, description="through the frozen layers, once per text; default: no such layers"
    )
    round_seconds: Seconds = Field(
        0.0, description="of one PC in one round beside training: checks, ledger, masking"
    )
    watts: Rate | None = Field(
        None, description="while it trains; default: measured by doctor, or the price table's"
    )
    available: Hours | None = Field(
        None, description="chance to be there: one number, or one for each hour from 0 to 23"
    )
    down_mbit: Rate = Field(50.0, description="megabits per second to the PC")
    up_mbit: Rate = Field(10.0, description="megabits per second from the PC")
    latency_ms: float = Field(
        30.0, ge=0, le=60_000, description="of one request to the server, there and back"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.doctor is None) == (self.texts_per_second is None):
            raise ValueError(
                f'class "{self.name}": give one of texts_per_second and doctor (the file that '
                "`fedaipc doctor JOB --json` printed on such a PC)"
            )
        if self.doctor is not None and self.frozen_texts_per_second is not None:
            raise ValueError(f'class "{self.name}": frozen_texts_per_second comes from doctor')
        if self.doctor is None and self.factor != 1:
            raise ValueError(f'class "{self.name}": factor is of a doctor file, and none is named')
        _check_hours(f'class "{self.name}"', self.available)
        return self


class Dropouts(Section):
    """The chance that a PC which is there vanishes at a stage of a round, beside those that leave
    because of the hour.
    """

    ready: Chance = Field(0.0, description="is asked whether it takes part, and does not answer")
    mask: Chance = Field(0.0, description="gets the model and sends no update")
    agree: Chance = Field(0.0, description="is asked to agree on a set of updates")
    unmask: Chance = Field(0.0, description="is asked for its shares")
    noticed_after: Seconds = Field(
        20.0,
        description="seconds until the server knows that a PC has vanished; two heartbeats of "
        "10 s. For PCs that stay connected and silent: as long as the job's timeouts",
    )


class ServerMachine(Section):
    """The coordinator's machine and its line.

    The defaults of its own time are measurements with a few PCs, which ran on the same two cores
    (scripts/bench/results): a server of its own is quicker.
    """

    down_mbit: Rate = Field(1000.0, description="megabits per second to the server, of all PCs")
    up_mbit: Rate = Field(1000.0, description="megabits per second from the server")
    exchange_seconds: Seconds = Field(
        0.2, description="of one message to PCs and back, however few they are"
    )
    message_seconds: Seconds = Field(
        0.04, description="that each further PC adds to that: the server's work"
    )
    values_per_second: Rate = Field(4e7, description="values of updates that it adds up and keeps")
    unmask_seconds: Seconds = Field(0.005, description="of its work to unmask, per PC of a group")
    evaluation_seconds: Seconds = Field(0.0, description="of one evaluation of the model")
    dollars_per_hour: Money = Field(0.0, description="price of the server")
    dollars_per_gib: Money = Field(0.0, description="price of traffic from the server")


class Fleet(Section):
    """One fleet file."""

    texts: int = Field(1000, ge=1, le=100_000_000, description="records of one PC")
    parameters: int | None = Field(
        None,
        ge=1,
        le=10**11,
        description="trained values of the job's model; default: from a doctor file, otherwise "
        "the model is opened",
    )
    available: Hours = Field(
        (1.0,),
        description="chance that a PC is there: one number, or one for each hour from 0 to 23",
    )
    start_hour: int = Field(9, ge=0, lt=HOURS, description="at which a run begins")
    classes: tuple[SpeedClass, ...] = Field(max_length=MAX_CLASSES, description="the speed classes")
    dropout: Dropouts = Dropouts()
    server: ServerMachine = ServerMachine()

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_hours("the fleet", self.available)
        names = [one.name for one in self.classes]
        if len(set(names)) < len(names):
            raise ValueError("classes: two of them have one name")
        total = sum(one.share for one in self.classes)
        if abs(total - 1) > _SHARES:
            raise ValueError(f"classes: their shares add up to {total:g}, and must add up to 1")
        return self


class _Speed(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    precision: str
    frozen: Rate | None
    ordinary: Rate
    private: Rate


class _Power(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    watts: Rate
    watts_measured: bool


class DoctorReport(BaseModel):
    """What is used of the output of `fedaipc doctor --json`; `speeds` are from the best on."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    speeds: tuple[_Speed, ...] = Field(min_length=1)
    parameters: int = Field(ge=1)
    forecast: _Power

    def with_precision(self, precision: str) -> _Speed:
        """The best that was measured in that precision; of all where none was."""
        own = [speed for speed in self.speeds if speed.precision == precision]
        return (own or list(self.speeds))[0]


def read_fleet(path: Path) -> Fleet:
    """Raises ConfigError: unreadable, unknown key, value out of range, clash."""
    tree = read_toml(path)
    try:
        return fleet_from(tree)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def fleet_from(tree: Mapping[str, Any]) -> Fleet:
    """Raises ConfigError."""
    return validated(Fleet, tree)


def read_doctor(path: Path) -> DoctorReport:
    """Raises ConfigError."""
    advice = f"write it with `fedaipc doctor JOB --json > {path.name}` on a PC of this class"
    try:
        return DoctorReport.model_validate(strict_json.load(path, max_bytes=_MAX_REPORT))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {advice}") from None
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise ConfigError(f"{path}: not what doctor prints ({where}); {advice}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; {advice}") from None


def _check_hours(whose: str, hours: tuple[float, ...] | None) -> None:
    if hours is not None and len(hours) not in (1, HOURS):
        raise ValueError(
            f"{whose}: available has {len(hours)} numbers; give one, or one for each of the "
            f"{HOURS} hours"
        )
