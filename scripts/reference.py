"""Write the tables of docs/reference that the code itself can tell, and the JSON schemas.

    python scripts/reference.py            # write
    python scripts/reference.py --check    # only say whether what is there is what would be written

In a page, what stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->` comes from here.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fedaipc import errors
from fedaipc.certificate.document import Certificate
from fedaipc.cli.main import app
from fedaipc.config import OwnerSettings, Settings
from fedaipc.config.explain import Key, keys_of
from fedaipc.config.section import Choice
from fedaipc.lab.sweep.cells import Rule, Search, Space, Sweep
from fedaipc.planning.fleet import Dropouts, Fleet, ServerMachine, SpeedClass
from fedaipc.results import Results

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pydantic import BaseModel

    from fedaipc.config import Section

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = [tuple(cell.replace("|", r"\|") for cell in row) for row in rows]
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(line)} |" for line in lines),
        "",
    ]


def code(text: str) -> str:
    return f"`{text}`" if text else ""


# The command line.


def commands() -> Iterator[str]:
    yield from _command(typer.main.get_command(app), "fedaipc", 2)


def _command(command: Any, path: str, level: int) -> Iterator[str]:
    if path != "fedaipc":
        yield f"{'#' * level} {path}\n"
        text, _, example = inspect.cleandoc(command.help).rpartition("Example: ")
        yield from (text or example).strip().split("\n")
        yield ""
        if text:
            yield f"```sh\n{example.strip()}\n```\n"
        level += 1
    known = getattr(command, "commands", {})
    if not known:
        rows = [_parameter(one) for one in command.params]
        yield from table(("name", "value", "default", "meaning"), rows)
    for name, inner in known.items():
        yield from _command(inner, f"{path} {name}", level)


def _parameter(one: Any) -> tuple[str, str, str, str]:
    is_option = one.param_type_name == "option"
    names = (*one.opts, *one.secondary_opts) if is_option else (one.name.upper(),)
    kind = one.type.name
    value = "" if getattr(one, "is_flag", False) else " | ".join(getattr(one.type, "choices", ()))
    bounds = [getattr(one.type, end, None) for end in ("min", "max")]
    if kind.endswith("range"):
        words = [f"{word} {end:g}" for word, end in zip(("from", "to"), bounds, strict=True)
                 if end is not None]  # fmt: skip
        value = f"{kind.split()[0]} {' '.join(words)}"
    elif not value and not getattr(one, "is_flag", False):
        value = kind
    for typed, said in (("integer", "whole number"), ("float", "number"), ("directory", "folder")):
        value = value.replace(typed, said)
    if one.multiple:
        value += ", repeatable"
    if one.nargs == -1:
        value += ", one or more" if one.required else ", any number"
    default = "required" if one.required else ""
    if one.default not in (None, False, ()) and not one.required:
        default = code("--inversion" if one.default is True else str(one.default))
    return ", ".join(map(code, names)), value, default, one.help or ""


# Configuration.


def job() -> Iterator[str]:
    own = [key for key in keys_of(Settings) if key.section is None]
    yield "### Top level\n"
    yield from _keys(own, "")
    yield from _sections(Settings, "", 3)


def owner() -> Iterator[str]:
    yield "### Top level\n"
    yield from _keys([key for key in keys_of(OwnerSettings) if key.section is None], "")
    yield from _sections(OwnerSettings, "", 3)


def _sections(model: type[Section], prefix: str, level: int) -> Iterator[str]:
    for key in keys_of(model):
        if key.section is None:
            continue
        path = f"{prefix}{key.name}"
        yield f"{'#' * level} [{path}]\n"
        yield from [*_purpose(key.section), ""]
        if issubclass(key.section, Choice):
            yield from _kinds(key.section, path, level + 1)
            continue
        yield from _keys([one for one in keys_of(key.section) if one.section is None], f"{path}.")
        yield from _sections(key.section, f"{path}.", level + 1)


def _kinds(family: type[Choice], path: str, level: int) -> Iterator[str]:
    kinds = family.known()
    shared = [key for key in keys_of(family) if key.name != "kind"]
    choice = Key("kind", " | ".join(kinds), json.dumps(family.usual), "which of them", None)
    yield from _keys([choice, *shared], f"{path}.")
    for name, kind in kinds.items():
        yield f'{"#" * level} {path}.kind = "{name}"\n'
        yield from [*_purpose(kind), ""]
        own = [key for key in keys_of(kind) if key.name != "kind" and key not in shared]
        if own:
            yield from _keys(own, f"{path}.")


def _keys(keys: Iterable[Key], prefix: str) -> list[str]:
    rows = [
        (
            code(prefix + key.name),
            key.allowed,
            "required" if key.default is None else code(key.default),
            key.meaning,
        )
        for key in keys
    ]
    return table(("key", "allowed", "default", "meaning"), rows)


def _purpose(model: type) -> list[str]:
    """Its docstring, without what only somebody needs who adds a kind."""
    parts = inspect.cleandoc(model.__doc__ or "").split("\n\n")
    kept = [p for p in parts if "of your own" not in p and not p.startswith(f"{model.__name__}(")]
    return "\n\n".join(kept).split("\n")


SWEEP = {"Rule": "rules", "Search": "search", "Space": "searchspacekey"}  # anchors of headings


def sweep() -> Iterator[str]:
    for title, model in (
        ("Top level", Sweep), ("[[rules]]", Rule), ("[search]", Search),
        ("[search.space.KEY]", Space),
    ):  # fmt: skip
        yield f"### {title}\n"
        yield from [*_purpose(model), ""]
        yield from _fields(model.model_json_schema(), model.model_json_schema(), defaults=True)


def fleet() -> Iterator[str]:
    for title, model in (
        ("Top level", Fleet), ("[[classes]]", SpeedClass), ("[dropout]", Dropouts),
        ("[server]", ServerMachine),
    ):  # fmt: skip
        anchor = "" if model is Fleet else " of a fleet"  # a job has a [server] as well
        yield f"### {title}{anchor}\n"
        yield from [*_purpose(model), ""]
        yield from _keys([key for key in keys_of(model) if key.section is None], "")


# Files that runs write.


def _fields(own: dict[str, Any], root: dict[str, Any], *, defaults: bool = False) -> list[str]:
    needed = own.get("required", ())
    rows: list[tuple[str, ...]] = []
    for name, field in own.get("properties", {}).items():
        default = "" if field.get("default") is None else code(json.dumps(field["default"]))
        extra = ["required" if name in needed else default] if defaults else []
        rows.append((code(name), _type(field, root), *extra, field.get("description", "")))
    head = ("key", "type", "default", "meaning") if defaults else ("field", "type", "meaning")
    return table(head, rows)


def _type(field: dict[str, Any], root: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{SWEEP.get(name, name).lower()})"
    if "anyOf" in field:
        return " or ".join(_type(one, root) for one in field["anyOf"])
    if "const" in field:
        return code(json.dumps(field["const"]))
    if "enum" in field:
        return " | ".join(map(str, field["enum"]))
    kind = field.get("type", "any")
    if kind == "array":
        return f"list of {_several(_type(field.get('items', {}), root))}"
    if kind == "object":
        inner = field.get("additionalProperties")
        return f"table of {_several(_type(inner, root))}" if isinstance(inner, dict) else "table"
    words = {"string": "text", "integer": "whole number", "boolean": "true | false"}
    return str(words.get(kind, kind))


def _several(kind: str) -> str:
    return f"{kind}s" if kind.endswith(("number", "table")) else kind


def _document(model: type[BaseModel], known: set[str]) -> Iterator[str]:
    """Fields of a file, then of what it holds, but for the `known` of another file."""
    schema = schema_of(model)
    parts = {model.__name__: schema, **schema.get("$defs", {})}
    for name, part in parts.items():
        if name not in known:
            yield f"### {name}\n"
            yield from [*part.get("description", "").split("\n"), ""]
            yield from _fields(part, schema)


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema(mode="serialization")


def results() -> Iterator[str]:
    yield from _document(Results, set())


def certificate() -> Iterator[str]:
    yield from _document(Certificate, set(schema_of(Results)["$defs"]))


# Errors.


def exit_codes() -> Iterator[str]:
    for kind in sorted(_errors(), key=lambda kind: kind.exit_code):
        meaning, _, remedy = inspect.cleandoc(kind.__doc__ or "").partition("\n\n")
        above = kind.__mro__[1].__name__
        yield f"## {kind.__name__}\n"
        yield f"**Exit code {kind.exit_code}.** {meaning}\n"
        yield f"{remedy}\n"
        if above not in ("Exception", "FedaipcError"):
            yield f"It is a [{above}](#{above.lower()}) as well.\n"


def _errors() -> list[type[errors.FedaipcError]]:
    return [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.FedaipcError)
    ]


PAGES: dict[str, dict[str, Callable[[], Iterator[str]]]] = {
    "cli.md": {"commands": commands},
    "configuration.md": {"job": job, "owner": owner, "sweep": sweep, "fleet": fleet},
    "results.md": {"results": results, "certificate": certificate},
    "exit-codes.md": {"errors": exit_codes},
}
SCHEMAS: dict[str, type[BaseModel]] = {
    "results.schema.json": Results,
    "certificate.schema.json": Certificate,
}


def written() -> dict[Path, str]:
    """What the files must hold. Raises SystemExit where a page lacks a mark."""
    found = {}
    for page, parts in PAGES.items():
        text = (FOLDER / page).read_text(encoding="utf-8")
        for name, part in parts.items():
            block = "\n".join(line.rstrip(" ") for line in part()).strip()
            block = re.sub(r"\n{3,}", "\n\n", block)
            marks = re.compile(rf"(<!-- {name}: begin -->\n).*?(<!-- {name}: end -->)", re.DOTALL)
            if not marks.search(text):
                sys.exit(f"{page}: has no marks for {name}")
            text = marks.sub(lambda m, block=block: f"{m[1]}\n{block}\n\n{m[2]}", text)  # type: ignore[misc]
        found[FOLDER / page] = text
    for name, model in SCHEMAS.items():
        found[FOLDER / name] = json.dumps(schema_of(model), indent=1) + "\n"
    return found


def main() -> None:
    check = sys.argv[1:] == ["--check"]
    stale = []
    for path, text in written().items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
            if not check:
                path.write_text(text, encoding="utf-8")
    if stale and check:
        sys.exit(f"not as the code has it: {', '.join(stale)}; run python scripts/reference.py")


if __name__ == "__main__":
    main()
