"""What a setting may be, and what is wrong with one, in words."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from fedaipc.config.settings import NAME, Section

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails


def describe_fields(model: type[Section], prefix: str = "") -> list[tuple[str, str, str]]:
    """(key path, allowed values, meaning) of every setting below `model`."""
    rows = []
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            rows += describe_fields(field.annotation, f"{path}.")
        else:
            rows.append((path, _allowed(field), field.description or ""))
    return rows


def explain(model: type[Section], detail: ErrorDetails) -> str:
    # A position inside a list is not part of a key's path.
    names = [str(part) for part in detail["loc"] if isinstance(part, str)]
    path = ".".join(names)
    parent, field = _find(model, names)
    if detail["type"] == "extra_forbidden":
        return unknown_key(path, names[-1], list(parent.model_fields))
    given = detail.get("input")
    if detail["type"] == "value_error":  # of a section; our own words name the keys
        return detail["msg"].removeprefix("Value error, ")
    if field is None:
        return f"{path}: is a section: give it keys, as in [{path}]" if path else "no settings"
    shown = "" if isinstance(given, dict) else f" = {_short(given)}"
    message = _WORDS.get(detail["type"]) or detail["msg"][:1].lower() + detail["msg"][1:]
    allowed = _allowed(field)
    return f"{path}{shown}: {message}" + (f" (allowed: {allowed})" if allowed else "")


def unknown_key(path: str, name: str, known: Sequence[str]) -> str:
    """What is wrong with the key `name` at `path`, where only `known` ones may stand."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "known keys: " + ", ".join(known)
    return f"{path}: unknown key; {hint}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _find(model: type[Section], names: Sequence[str]) -> tuple[type[Section], FieldInfo | None]:
    parent, field = model, None
    for name in names:
        field = parent.model_fields.get(name)
        if field is None:
            return parent, None
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            parent, field = field.annotation, None
        else:
            break
    return parent, field


_WORDS = {
    "string_type": "input should be text: put it in quotes",
    "string_unicode": "is not UTF-8, so that no settings file can hold it; rename it",
    "tuple_type": 'input should be a list, as in ["a", "b"]',
    "string_pattern_mismatch": "input should be a plain name",
}
_BOUNDS = (("gt", "more than "), ("ge", "from "), ("lt", "less than "), ("le", "to "))


def _allowed(field: FieldInfo) -> str:
    """The allowed values of a field in words, "" where its type says nothing more."""
    names, bounds, types = [], [], []
    queue: list[Any] = [field.annotation, *field.metadata]
    while queue:
        item = queue.pop(0)
        if get_origin(item) is Literal:
            names += [str(value) for value in get_args(item)]
        elif isinstance(item, type) and get_origin(item) is None:
            types.append(item)
        elif get_args(item):
            queue += get_args(item)
        else:
            queue += getattr(item, "metadata", [])
            if getattr(item, "pattern", None) == NAME:
                names.append("letters, digits and . _ - after the first")
            bounds += [
                f"{word}{_number(getattr(item, key))}"
                for key, word in _BOUNDS
                if getattr(item, key, None) is not None
            ]
    if names:
        return " | ".join(names)
    if bool in types:
        return "true | false"
    order = {word: rank for rank, (_, word) in enumerate(_BOUNDS)}
    bounds.sort(key=lambda text: next(order[word] for word in order if text.startswith(word)))
    return ", ".join(dict.fromkeys(bounds)).replace(", to", " to")


def _number(bound: float) -> str:
    """Short, and never rounded: 100000, 1e+09, 9223372036854775807."""
    return f"{bound:g}" if float(f"{bound:g}") == bound and bound < 2**53 else str(bound)
