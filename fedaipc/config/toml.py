"""Settings from TOML, flags and --set, and back to TOML."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any, TypeVar

import tomli_w
from pydantic import ValidationError

from fedaipc import bounds
from fedaipc.config.explain import choices, explain
from fedaipc.config.owner import OwnerSettings
from fedaipc.config.section import Choice, Section
from fedaipc.config.settings import Settings
from fedaipc.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

T = TypeVar("T", bound=Section)


def load_settings(
    path: Path | None = None,
    overrides: Sequence[str] = (),
    flags: Mapping[str, object] | None = None,
) -> Settings:
    """Read `path` (TOML), lay `flags` and then `overrides` ("section.key=value") on top.

    Raises ConfigError: unreadable or broken file, unknown key, value out of range, clash.
    """
    tree = read_toml(path) if path is not None else {}
    given = dict(flags or {})
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {override}: write it as section.key=value")
        given[key.strip()] = _parse_value(text.strip())
    return _with_values(tree, given)


def with_values(settings: Settings, values: Mapping[str, object]) -> Settings:
    """`settings` with `values` ("section.key": value) on top, as flags are laid on a file.

    Values that were not given are derived again. Raises ConfigError.
    """
    return _with_values(_given(settings), dict(values))


def settings_from(tree: Mapping[str, object]) -> Settings:
    """Validate a tree of plain values. Raises ConfigError."""
    return validated(Settings, tree)


def load_owner(path: Path) -> OwnerSettings:
    """Read a PC's owner.toml. Raises ConfigError."""
    tree = read_toml(path)
    try:
        return validated(OwnerSettings, tree)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def to_toml(settings: Section, *, without: Collection[str] = ()) -> str:
    """TOML that reads back to an equal object (keys without a value are left out).

    `without` names keys that are left out, too: those that stand at their default.
    """
    return tomli_w.dumps(settings.model_dump(mode="json", exclude_none=True, exclude=set(without)))


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a file. Raises ConfigError: unreadable or broken."""
    try:
        return tomllib.loads(bounds.read_text(path, bounds.MAX_SETTINGS))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8; save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not valid TOML: nested too deep") from None


def _with_values(tree: dict[str, Any], given: dict[str, object]) -> Settings:
    _choose_kinds(tree, given)
    for key, value in given.items():
        _put(tree, key, value)
    return settings_from(tree)


def _given(section: Section) -> dict[str, Any]:
    """What was given of a section, with the kind of every choice, as plain tables."""
    names = section.model_fields_set | ({"kind"} if isinstance(section, Choice) else set())
    found = {name: getattr(section, name) for name in names}
    return {
        name: _given(value) if isinstance(value, Section) else value
        for name, value in found.items()
        if value is not None
    }


def _parse_value(text: str) -> object:
    """`text` as a TOML value, or as it is where it is not one."""
    try:
        tree = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return tree["value"] if len(tree) == 1 else text


def _put(tree: dict[str, Any], key: str, value: object) -> None:
    *sections, last = key.split(".")
    node = tree
    for depth, section in enumerate(sections, start=1):
        inner = node.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{key}: {'.'.join(sections[:depth])} holds a value already")
        node = inner
    node[last] = value


def _choose_kinds(tree: dict[str, Any], given: dict[str, object]) -> None:
    """Where the kind differs from the file's, drop the keys that only the file's kind has."""
    for path, family in choices(Settings):
        *sections, last = path.split(".")
        node: Any = tree
        for section in sections:
            node = node.get(section) if isinstance(node, dict) else None
        if isinstance(node, dict) and isinstance(node.get(last), str):
            node[last] = {"kind": node[last]}
        name = given.pop(path, None)
        if name is not None:
            given[f"{path}.kind"] = name
        kind = family.known().get(str(given.get(f"{path}.kind")))
        if kind is not None and isinstance(node, dict) and isinstance(node.get(last), dict):
            node[last] = {k: v for k, v in node[last].items() if k in kind.model_fields}


def validated(model: type[T], tree: Mapping[str, object]) -> T:
    """Settings of the kind `model` from a tree of plain values. Raises ConfigError."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        details = error.errors(include_url=False)
        lines = [explain(model, detail, tree) for detail in details]
        raise ConfigError("; ".join(lines)) from None
