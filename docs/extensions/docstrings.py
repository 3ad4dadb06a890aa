"""Docstrings as they are written, for Sphinx: see `literal` and `settings_table`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedaipc.config import Section
from fedaipc.config.explain import keys_of

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def literal(lines: list[str]) -> list[str]:
    """Indented lines after a paragraph are code, as in Markdown; reST wants `::` before them."""
    found: list[str] = []
    for line in lines:
        begins = line.startswith("    ") and not any(map(str.strip, found[-1:]))
        above = next((old for old in reversed(found) if old.strip()), "")
        if begins and not above.startswith(("    ", ".. ")) and above != "::":
            found += ["::", ""]
        found.append(line)
    return found


def settings_list(section: type[Section]) -> list[str]:
    """The settings of a section, one a line."""
    lines = ["", "Settings:", ""]
    for key in keys_of(section):
        if key.name == "kind" and key.default is None:
            continue  # each kind has its own
        default = "" if key.default is None else f" = ``{key.default or 'None'}``"
        if key.section is not None:
            default = f" = `{type(section.model_fields[key.name].default).__name__}()`"
        allowed = f" ({key.allowed})" if key.allowed and key.name != "kind" else ""
        meaning = f": {key.meaning}" if key.meaning else ""
        lines.append(f"- ``{key.name}``{default}{allowed}{meaning}".replace("|", r"\|"))
    return [*lines, ""]


def process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Called for each docstring, which `lines` holds and takes."""
    del app, name, options
    lines[:] = literal(lines)
    if what == "class" and issubclass(obj, Section):
        lines += settings_list(obj)


def signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Settings are given by name; the list says which."""
    del app, name, options, signature, returns
    return ("(**settings)", "") if what == "class" and issubclass(obj, Section) else None


def skip(app: Sphinx, what: str, name: str, obj: Any, skipped: bool, options: Any) -> bool | None:
    """Pydantic's own is no part of a settings class."""
    del app, what, obj, skipped, options
    return True if name == "model_config" else None


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", skip)
    return {"parallel_read_safe": True}
