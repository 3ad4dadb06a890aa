"""One look for all plots, and figures as files. It uses no pyplot and no display, and leaves no
state behind.

A function that makes figures is decorated with `@drawing()` and starts with `new_axes`.

Colours are Okabe and Ito's, which readers with any colour vision can tell apart; marks and line
styles differ as well. SVG output is the same bytes for the same figure.
"""

from __future__ import annotations

import io
import re
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.style  # now: the first plot would look into a HOME that may be closed by then
from markupsafe import Markup, escape
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedaipc.errors import OutputError
from fedaipc.report import formatting
from fedaipc.results import write_file
from fedaipc.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from fedaipc.results import Results

INK = "#22303c"
GRID = "#d5dbe1"
PAPER = "#ffffff"  # matplotlib's own white
ALARM = "#c1121f"
BLUE, ORANGE, GREEN, VERMILLION = "#0072b2", "#e69f00", "#009e73", "#d55e00"
GREY = "#8a949e"
PALETTE = (BLUE, ORANGE, GREEN, "#cc79a7", "#56b4e9", VERMILLION, "#b8a800")
DASHES = ("-", "--", "-.", ":")
WIDTH = 8.0  # inches; 1200 pixels in PNG, and still readable when shown at 800
DOTS_PER_INCH = 150
SCREEN_DOTS = 75  # of a picture in a notebook, beside text

# Any: matplotlib's stubs name every key since 3.11 and none before.
_STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 13,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "axes.facecolor": "none",
    # Text stays text: smaller files, and readers can search and copy it.
    "svg.fonttype": "none",
}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with our style, whatever the user's matplotlibrc says; put everything back after."""
    with mpl.rc_context(), warnings.catch_warnings():
        # A label may use a script that the plot's font lacks; it is still right in SVG and tables.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


class NotebookFigure(Figure):
    """A figure that a notebook shows, also one in which nobody has imported pyplot."""

    def _repr_png_(self) -> bytes:
        return figure_bytes(self, ".png", "", SCREEN_DOTS)


def new_figure(height: float = 4.2) -> Figure:
    """An empty figure 8 inches wide; call inside `drawing()`."""
    return NotebookFigure(figsize=(WIDTH, height), layout="constrained")


def new_axes(
    title: str = "", x: str = "", y: str = "", *, height: float = 4.2
) -> tuple[Figure, Axes]:
    """A figure with one plot: its title and what its axes count; call inside `drawing()`."""
    figure = new_figure(height)
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes


def color(number: int) -> str:
    """Of the line or group with this number; they come again where there are many."""
    return PALETTE[number % len(PALETTE)]


def count_along_x(axes: Axes) -> None:
    """Ticks at whole numbers only: rounds, PCs."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def plain(text: str, limit: int = 40) -> str:
    """`text` as matplotlib shall show it: printable, not too long, never read as mathematics."""
    text = printable(text)
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    # A legend would leave out what starts with an underscore.
    text = f" {text}" if text.startswith("_") else text
    return text.replace("$", r"\$")


def put_title(axes: Axes, title: str, runs: Sequence[Results]) -> None:
    """Set the title; NOT PRIVATE leads it, in red, where any of `runs` is not private."""
    if any(run.not_private for run in runs):
        some = "" if all(run.not_private for run in runs) else "SOME RUNS "
        axes.set_title(f"{some}{formatting.NOT_PRIVATE} | {title}", color=ALARM, weight="bold")
    else:
        axes.set_title(title)


def put_legend(figure: Figure, handles: Sequence[Artist] | None = None) -> None:
    """The legend below the plot, where it hides nothing: of all that has a label, or `handles`."""
    if handles is None:
        handles = [one for axes in figure.axes for one in axes.get_legend_handles_labels()[0]]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)),
                      fontsize=10, handlelength=2.2)  # fmt: skip


@drawing()
def figure_bytes(
    figure: Figure, ending: str, name: str, dots_per_inch: int = DOTS_PER_INCH
) -> bytes:
    """The figure in the format that a file's `ending` names, without date or version.

    `name` sets the ids in an SVG, so that plots on one page do not share them. Raises OutputError
    where the ending is neither .png nor .svg.
    """
    out = io.BytesIO()
    if ending.lower() == ".png":
        FigureCanvasAgg(figure)
        # The version in the metadata would make equal plots differ.
        figure.savefig(out, format="png", dpi=dots_per_inch, metadata={"Software": None})
    elif ending.lower() == ".svg":
        FigureCanvasSVG(figure)
        mpl.rcParams["svg.hashsalt"] = f"fedaipc {name}"
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=nothing)
    else:
        shown = f'"{ending}"' if ending else "no ending"
        raise OutputError(f"a plot is written as .png or .svg, and this name has {shown}")
    return out.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write a .png or .svg. Raises OutputError: another ending, or the file cannot be written."""
    write_file(path, figure_bytes(figure, path.suffix, path.stem))


def save_all(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Write PNG and SVG of each, by its name; return the paths. Raises OutputError."""
    paths = [folder / f"{name}{ending}" for name in figures for ending in (".png", ".svg")]
    for path in paths:
        save(figures[path.stem], path)
    return paths


def inline_all(
    figures: Mapping[str, Figure], alt: Mapping[str, str] | None = None
) -> dict[str, Markup]:
    """Each as a part of a page; `alt` says in words what one shows, by its name."""
    said = {name: f"Plot: {name}" for name in figures} | dict(alt or {})
    return {name: _inline(figure, name, said[name]) for name, figure in figures.items()}


def _inline(figure: Figure, name: str, alt: str) -> Markup:
    """The figure's SVG with own ids, the page's colours and font, no namespaces.

    Matplotlib has escaped all text; only tags are touched here, never the text between them.
    """
    svg = figure_bytes(figure, ".svg", name).decode()
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<[^<>]*>", lambda match: _fit_tag(match.group(), name), svg)
    box = re.search(r'viewBox="[-0-9. ]+"', svg)
    opening = f'<svg role="img" aria-label="{escape(printable(alt))}" {box.group() if box else ""}>'
    svg = re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1).strip()
    return Markup(f"<figure>{svg}</figure>")  # noqa: S704 - escaped by matplotlib


def _fit_tag(tag: str, name: str) -> str:
    # Several plots share one page: equal ids would let one plot use another one's marks.
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = tag.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    tag = re.sub(r"font: ((?:\w+ )*\d+px) [^;\"]*", r"font: \1 sans-serif", tag)
    tag = tag.replace(f"fill: {PAPER}", "fill: none")
    tag = tag.replace(INK, "currentColor").replace(GRID, "var(--line)")
    return tag.replace(ALARM, "var(--alarm)")
