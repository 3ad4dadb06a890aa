"""One look for all plots, and figures as bytes. No pyplot, no display, no state left behind.

Colours are Okabe and Ito's, which readers with any colour vision can tell apart; marks and line
styles differ as well. SVG output is the same bytes for the same figure.
"""

from __future__ import annotations

import io
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from fedaipc.errors import OutputError
from fedaipc.report import formatting
from fedaipc.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from fedaipc.results import Results

INK = "#22303c"
GRID = "#d5dbe1"
PAPER = "#ffffff"
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
    "axes.labelsize": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.facecolor": PAPER,
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
        return png_bytes(self, SCREEN_DOTS)


def new_figure(height: float = 4.2) -> Figure:
    """An empty figure 8 inches wide; call inside `drawing()`."""
    return NotebookFigure(figsize=(WIDTH, height), layout="constrained")


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


def put_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """The legend below the plot, where it hides nothing."""
    if handles:
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=min(4, len(handles)),
            fontsize=10,
            handlelength=2.2,
        )


def png_bytes(figure: Figure, dots_per_inch: int = DOTS_PER_INCH) -> bytes:
    out = io.BytesIO()
    FigureCanvasAgg(figure)
    # The version in the metadata would make equal plots differ.
    figure.savefig(out, format="png", dpi=dots_per_inch, metadata={"Software": None})
    return out.getvalue()


def svg_bytes(figure: Figure, salt: str) -> bytes:
    """SVG without date or version; `salt` sets the ids, so that plots on one page do not share."""
    out = io.BytesIO()
    FigureCanvasSVG(figure)
    with mpl.rc_context({"svg.hashsalt": f"fedaipc {salt}"}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", metadata=nothing)
    return out.getvalue()


def check_ending(ending: str) -> None:
    """Raises OutputError where `ending` is neither .png nor .svg."""
    if ending.lower() not in {".png", ".svg"}:
        shown = f'"{ending}"' if ending else "no ending"
        raise OutputError(f"a plot is written as .png or .svg, and this name has {shown}")


def figure_bytes(figure: Figure, ending: str, salt: str) -> bytes:
    """The figure in the format that a file's `ending` names. Raises OutputError: another one."""
    check_ending(ending)
    return png_bytes(figure) if ending.lower() == ".png" else svg_bytes(figure, salt)
