"""What all settings share: frozen sections, and choices between several kinds of a thing."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fedaipc import strict_json
from fedaipc.errors import ConfigError

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)

Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
Positive = Annotated[float, Field(gt=0, le=1e9)]
Share = Annotated[float, Field(gt=0, le=1)]
MIN_NOISE, MAX_NOISE = 0.1, 1e6  # noise multiplier; beyond, accountants lose their digits
MAX_KINDS = 100  # of steps: each costs the PLD accountant a second
# What a schedule can lose at a delta of 1e-15, by RDP. The PLD accountant's grid is about as wide,
# at 20,000 points for each 1: that takes seconds and half a GB. Epsilon is 200 there, and more.
MAX_LOSS, LOSS_DELTA = 300.0, 1e-15
MIN_CLIP, MAX_CLIP = 1e-9, 1e9  # below, the float32 squares of a gradient vanish
RUN = r"^[0-9a-f]{16}$"  # the identifier of a run
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
ENTRY_POINTS = "fedaipc"  # the group in which other packages name modules that register kinds


class Frozen(BaseModel):
    """Frozen, no unknown keys, no NaN or infinity: settings, and all else that is read back."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True
    )

    @classmethod
    def from_json(cls, content: bytes | str, *, max_bytes: int = strict_json.MAX_BYTES) -> Self:
        """Raises ValueError (pydantic's is one): not strict JSON, or not of this type."""
        return cls.model_validate(strict_json.parse(content, max_bytes=max_bytes))

    @classmethod
    def from_file(cls, path: Path, *, max_bytes: int = strict_json.MAX_BYTES) -> Self:
        """Raises OSError, or ValueError as `from_json`."""
        return cls.model_validate(strict_json.load(path, max_bytes=max_bytes))

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: object, info: ValidationInfo) -> object:
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and kind is not bool:
            raise PydanticCustomError("not_a_flag", "true and false are not allowed here")
        return value


class _Explained(ModelMetaclass):
    """Whoever makes settings in Python gets the errors of the command line."""

    positional: tuple[str, ...]

    def __call__(cls, *given: Any, **named: Any) -> Any:  # noqa: N805
        from fedaipc.config.explain import explain

        if len(given) > len(cls.positional):
            raise ConfigError(f"{cls.__name__}: give its settings by name")
        named = {**dict(zip(cls.positional, given, strict=False)), **named}
        try:
            return super().__call__(**named)
        except ValidationError as error:
            details = error.errors(include_url=False)
            own: Any = cls
            lines = [explain(own, detail, named) for detail in details]
            raise ConfigError(f"{cls.__name__}: {'; '.join(lines)}") from None


class Section(Frozen, metaclass=_Explained):
    """Base of all settings. `positional` names those that may be given without their name."""

    positional: ClassVar[tuple[str, ...]] = ()


class Choice(Section):
    """One of several kinds of a thing, told by `kind`; each kind has keys of its own.

    A class directly below this one is the thing, as `TrainingMethod`; `usual` is the kind that is
    meant where none is named. A class below that is a kind; `register` makes it known. A name alone
    stands for a kind with its defaults: `train = "lora"`.

    A kind of another package has a `version` as well: what it computes. A job or a ledger that
    names another version than the installed one is refused.
    """

    usual: ClassVar[str]
    kinds: ClassVar[dict[str, type[Choice]]]

    kind: str = Field(description="which of its kinds")

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if Choice in cls.__bases__:
            cls.kinds = {}

    @classmethod
    def known(cls) -> dict[str, type[Choice]]:
        """All kinds of this thing by name, those of installed packages among them."""
        load_extensions()
        return dict(cls.kinds)

    @classmethod
    def kind_version(cls) -> str | None:
        """What the kind computes; None for one of fedaipc itself, which a job's format covers."""
        field = cls.model_fields.get("version")
        return None if field is None else str(field.default)

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_kind(cls, given: object, build: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(given, str):
            given = {"kind": given}
        if Choice not in cls.__bases__ or isinstance(given, cls) or not isinstance(given, Mapping):
            return build(given)
        name = given.get("kind", cls.usual)
        known = isinstance(name, str) and (cls.kinds.get(name) or cls.known().get(name))
        if not known:
            raise PydanticCustomError("unknown_kind", "is not known here")
        kind: type[Choice] = known
        version = given.get("version", kind.kind_version())
        if version != kind.kind_version():
            raise PydanticCustomError("other_version", "is here in another version")
        made = kind.model_validate({"kind": name, **given})
        assert isinstance(made, cls)  # noqa: S101 - `register` saw to it
        return made


def load_extensions() -> None:
    """Import the modules that installed packages name, so that what they register is known."""
    _load_extensions(tuple(sys.path))


@lru_cache(maxsize=1)
def _load_extensions(_: tuple[str, ...]) -> None:
    """Once for all places where packages lie: to look through them takes some 10 ms."""
    for entry in entry_points(group=ENTRY_POINTS):
        entry.load()


def kind_fault(family: type[Choice], given: object) -> str:
    """Why a kind that was written down, as in a job or a ledger, cannot be run here; "" if it can.

    What was written down names its version, and is run by that version alone.
    """
    if isinstance(given, str):
        given = {"kind": given}
    name = given.get("kind") if isinstance(given, Mapping) else None
    if not isinstance(given, Mapping) or not isinstance(name, str):
        return ""  # of another shape: whoever reads the whole reports it
    kind = family.kinds.get(name) or family.known().get(name)
    if kind is None:
        return f'"{name}" is not installed here: install the package that it comes from'
    if given.get("version") == kind.kind_version():
        return ""
    return (
        f'"{name}" is installed here in version {kind.kind_version() or "-"}, and version '
        f"{str(given.get('version', '-'))[:40]} is asked for: install that one"
    )


Kind = TypeVar("Kind", bound=type[Choice])


def register(kind: Kind) -> Kind:
    """Make a kind known by the default of its field `kind`; to be used as a decorator.

    The same class may be registered again, as a notebook does. Raises ConfigError where the name is
    taken, or a kind of another package has no `version`.
    """
    family: Any = next(base for base in kind.__mro__ if Choice in base.__bases__)
    own: Any = kind
    name = str(own.model_fields["kind"].default)
    if not kind.__module__.startswith("fedaipc.") and not kind.kind_version():
        raise ConfigError(
            f'{name}: give it a version, as in `version: Literal["1"] = "1"`, and another one '
            "whenever it computes something else"
        )
    taken = family.kinds.get(name)
    if taken is not None and _place(taken) != _place(kind):
        raise ConfigError(f"{name}: {_place(taken)} has this name already; choose another")
    family.kinds[name] = kind
    return kind


def _place(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
