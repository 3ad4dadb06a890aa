"""Pieces of HTML. Every string that goes in is escaped here, so that none is forgotten."""

from __future__ import annotations

import html
import re
from importlib import resources
from typing import TYPE_CHECKING

from fedaipc.report import plot_style
from fedaipc.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_TAG = re.compile(r"<[^<>]*>")
_STYLE_ELEMENT = re.compile(r"<style[^>]*>.*?</style>", re.DOTALL)


def page(title: str, *content: str) -> str:
    """A whole page that needs no network and no script.

    It forbids itself every request by its content security policy; style and plots are inline.
    """
    style = resources.files("fedaipc.report").joinpath("style.css").read_text(encoding="utf-8")
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        '<head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>\n{style}</style></head>",
        "<body>",
        *content,
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def escape(text: object) -> str:
    """`text` as HTML shows it literally, in text and in a quoted attribute."""
    return html.escape(printable(str(text)), quote=True)


def table(
    head: Sequence[str], rows: Iterable[Sequence[object]], words_in: Sequence[int] = (0,)
) -> str:
    """A table; columns are numbers (right-aligned) but for those in `words_in`."""

    def cells(tag: str, values: Sequence[object]) -> str:
        kinds = ("" if place in words_in else ' class="number"' for place in range(len(values)))
        return "".join(
            f"<{tag}{kind}>{escape(value)}</{tag}>"
            for kind, value in zip(kinds, values, strict=True)
        )

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (
        f'<div class="wide"><table>\n<thead><tr>{cells("th", head)}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def facts(rows: Iterable[tuple[str, object]]) -> str:
    """Names with their values, as a definition list."""
    items = "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    return f"<dl>\n{items}\n</dl>"


def folded(title: str, content: str) -> str:
    """Content behind a click; needs no script."""
    return f"<details>\n<summary>{escape(title)}</summary>\n{content}\n</details>"


def section(title: str, *content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n" + "\n".join(content) + "\n</section>"


def inline_svg(svg: str, name: str, alt: str) -> str:
    """A plot's SVG made part of a page: own ids, the page's colours and font, no namespaces.

    `svg` comes from `plot_style.svg_bytes`, where matplotlib has escaped all text. Only tags are
    touched here, never the text between them.
    """
    svg = _STYLE_ELEMENT.sub("", svg[svg.index("<svg") :])
    svg = _TAG.sub(lambda match: _fit_tag(match.group(), name), svg)
    box = re.search(r'viewBox="[-0-9. ]+"', svg)
    opening = f'<svg role="img" aria-label="{escape(alt)}" {box.group() if box else ""}>'
    return f"<figure>{re.sub(r'<svg[^>]*>', lambda _: opening, svg, count=1).strip()}</figure>"


def _fit_tag(tag: str, name: str) -> str:
    # Several plots share one page: equal ids would let one plot use another one's marks.
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = tag.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    tag = re.sub(r"font: ((?:\w+ )*\d+px) [^;\"]*", r"font: \1 sans-serif", tag)
    tag = tag.replace(f"fill: {plot_style.PAPER}", "fill: none")
    tag = tag.replace(plot_style.INK, "currentColor").replace(plot_style.GRID, "var(--line)")
    return tag.replace(plot_style.ALARM, "var(--alarm)")
