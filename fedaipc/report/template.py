"""Pages from templates: whatever is put into one is made printable and, in HTML, escaped."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from fedaipc.report import formatting
from fedaipc.report.table import facts
from fedaipc.terminal import printable

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: object) -> str:
    """The text of `report/templates/TEMPLATE` with these values.

    A template has all that is public in formatting.py, and `facts`. A name that is not given raises
    jinja2.UndefinedError: it is a mistake in the template.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    made = Environment(
        loader=PackageLoader("fedaipc.report"), undefined=StrictUndefined, finalize=_shown,
        autoescape=select_autoescape(disabled_extensions=["txt.j2"], default=True),
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    public = {name: one for name, one in vars(formatting).items() if not name.startswith("_")}
    made.globals |= {**public, "facts": facts}
    return made


def _shown(value: Any) -> Any:
    """Every value on its way into a page; autoescaping follows, where it is HTML."""
    return value if hasattr(value, "__html__") else printable(str(value))
