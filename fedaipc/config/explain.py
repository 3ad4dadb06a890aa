"""What a setting may be, and what is wrong with one, in words."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin

from fedaipc.config.section import NAME, Choice, Section, kind_fault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails


class Key(NamedTuple):
    """One setting in words; `default` is as in TOML, None where one has to be given.

    `section` is what the key holds, where that has keys of its own.
    """

    name: str
    allowed: str
    default: str | None
    meaning: str
    section: type[Section] | None


def keys_of(model: type[Section]) -> list[Key]:
    """The keys of `model` itself; of a choice those that all of its kinds have."""
    return [
        Key(
            name,
            _allowed(field) or _type_words(field.annotation),
            None if field.is_required() else _as_toml(field.get_default(call_default_factory=True)),
            field.description or "",
            _section(field),
        )
        for name, field in model.model_fields.items()
    ]


def _as_toml(value: Any) -> str:
    """`value` as a settings file has it; "" for none, and for a section."""
    if isinstance(value, bool | str | int | tuple | list):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else ""


def _type_words(annotation: Any) -> str:
    words = {str: "text", int: "whole number", float: "number"}
    inner = [_type_words(kind) for kind in get_args(annotation)]
    if get_origin(annotation) is tuple:
        return f"list of {inner[0]}"
    return words.get(annotation) or next(filter(None, inner), "")


def describe_fields(model: type[Section], prefix: str = "") -> list[tuple[str, str, str]]:
    """(key path, allowed values, meaning) of every setting below `model`.

    The keys of a kind follow the key that chooses it, and say whose they are.
    """
    rows = []
    for name, field in model.model_fields.items():
        path, inner = f"{prefix}{name}", _section(field)
        if inner is None:
            rows.append((path, _allowed(field), field.description or ""))
        elif issubclass(inner, Choice):
            rows += _describe_kinds(inner, path)
        else:
            rows += describe_fields(inner, f"{path}.")
    return rows


def choices(model: type[Section], prefix: str = "") -> list[tuple[str, type[Choice]]]:
    """Key paths below `model` at which a kind is chosen, and of what."""
    found: list[tuple[str, type[Choice]]] = []
    for name, field in model.model_fields.items():
        inner = _section(field)
        if inner is not None and issubclass(inner, Choice):
            found.append((f"{prefix}{name}", inner))
        elif inner is not None:
            found += choices(inner, f"{prefix}{name}.")
    return found


def _describe_kinds(family: type[Choice], path: str) -> list[tuple[str, str, str]]:
    kinds = family.known()
    rows = [(f"{path}.kind", " | ".join(kinds), (family.__doc__ or "").split(".")[0].strip())]
    found: dict[tuple[str, str, str], list[str]] = {}
    for name, kind in kinds.items():
        for key, allowed, meaning in describe_fields(kind, f"{path}."):
            if key != f"{path}.kind":
                found.setdefault((key, allowed, meaning), []).append(name)
    for (key, allowed, meaning), names in found.items():
        whose = "" if len(names) == len(kinds) else f"{', '.join(names)}: "
        rows.append((key, allowed, whose + meaning))
    return rows


def explain(model: type[Section], detail: ErrorDetails, tree: object) -> str:
    """One line on an error that pydantic found in `tree`."""
    # A position inside a list is not part of a key's path.
    names = [str(part) for part in detail["loc"] if isinstance(part, str)]
    path = ".".join(names)
    parent, field = _find(model, names, tree)
    if detail["type"] == "extra_forbidden":
        return unknown_key(path, names[-1], list(parent.model_fields), _kind_name(parent))
    given = detail.get("input")
    if detail["type"] == "unknown_kind":
        return _unknown_kind(parent, path, given)
    if detail["type"] == "other_version":
        assert issubclass(parent, Choice)  # noqa: S101 - only a choice has this error
        return f"{path}: {kind_fault(parent, given)}, or leave the version out"
    if detail["type"] == "value_error":  # of a section; our own words name the keys
        return detail["msg"].removeprefix("Value error, ")
    if field is None:
        keys = ", ".join(list(parent.model_fields)[:2])
        return f"{path}: is a section: give it keys, such as {keys}" if path else "no settings"
    shown = "" if isinstance(given, dict) else f" = {_short(given)}"
    message = _WORDS.get(detail["type"]) or detail["msg"][:1].lower() + detail["msg"][1:]
    allowed = _allowed(field)
    return f"{path}{shown}: {message}" + (f" (allowed: {allowed})" if allowed else "")


def unknown_key(path: str, name: str, known: Sequence[str], kind: str = "") -> str:
    """What is wrong with the key `name` at `path`, where only `known` ones may stand.

    `kind` names the kind of thing that has these keys.
    """
    longer = [key for key in known if key.startswith(f"{name}_")]
    close = longer or difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else "known keys: " + ", ".join(known)
    return f"{path}: unknown key{kind and f' of {kind}'}; {hint}"


def _unknown_kind(family: type[Section], path: str, given: object) -> str:
    assert issubclass(family, Choice)  # noqa: S101 - only a choice has this error
    name = given.get("kind") if isinstance(given, Mapping) else given
    return f"{path}.kind = {_short(name)}: not known here (allowed: {' | '.join(family.known())})"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _find(
    model: type[Section], names: Sequence[str], tree: object
) -> tuple[type[Section], FieldInfo | None]:
    """The section that holds what `names` lead to, and the field there, None for a section."""
    parent, field = model, None
    for name in names:
        field = parent.model_fields.get(name)
        if field is None:
            return parent, None
        inner = _section(field)
        tree = tree.get(name) if isinstance(tree, Mapping) else None
        if inner is None:
            break
        parent, field = _of_kind(inner, tree, parent, name), None
    return parent, field


def _section(field: FieldInfo) -> type[Section] | None:
    """The section that a field holds, or a list of."""
    kind = field.annotation
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _of_kind(inner: type[Section], tree: object, parent: type[Section], name: str) -> type[Section]:
    """The kind that `tree` chooses of `inner`, if that is a choice."""
    if not issubclass(inner, Choice):
        return inner
    chosen = tree.get("kind") if isinstance(tree, Mapping) else tree
    if chosen is None:
        usual = parent.model_fields[name].default
        return type(usual) if isinstance(usual, inner) else inner
    return inner.kinds.get(str(chosen), inner)


def _kind_name(section: type[Section]) -> str:
    is_kind = issubclass(section, Choice) and Choice not in section.__bases__
    return f'kind "{section.model_fields["kind"].default}"' if is_kind else ""


_WORDS = {
    "string_type": "input should be text: put it in quotes",
    "string_unicode": "is not UTF-8, so a settings file cannot hold it; rename it",
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
