"""An audit on one page, with plots: promise beside attack, ROC curves, words that were read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedaipc.report import formatting, plot_style
from fedaipc.report.markup import escape, inline_svg, page, section, table
from fedaipc.report.plot_style import drawing, new_figure, put_legend
from fedaipc.results import write_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from fedaipc.lab.audit.inversion import Inversion, Reading
    from fedaipc.lab.audit.report import AuditReport, Setting

_MIN = 1e-3  # of the axes of a ROC
_WORDS = 60
REFUTED = "REFUTED"


def audit_page(report: AuditReport) -> str:
    """The whole page; needs no network."""
    with drawing():
        drawn = {
            name: inline_svg(plot_style.svg_bytes(figure, name).decode(), name, f"Plot: {name}")
            for name, figure in figures(report).items()
        }
    verdict = "Every promise is compatible with what the attacks reached."
    alarm = ""
    if report.contradictions:
        names = ", ".join(setting_name(one) for one in report.contradictions)
        verdict = "A promise is refuted."
        alarm = (
            f'<p class="alarm"><strong>REFUTED</strong>: {escape(names)}: the attack reached more '
            "than was promised. Noise or clip are not what they should be.</p>"
        )
    title = f"<h1>Privacy audit: {escape(report.name)}</h1>"
    parts = [
        f'<header>{title}{alarm}<p class="lead">{escape(verdict)}</p></header>',
        section("Canaries, one run", _canary_words(report), drawn["bounds"], _canaries(report)),
    ]
    if "roc" in drawn:
        parts.append(section("Who was trained on?", drawn["roc"], _membership(report.settings)))
    if report.inversion is not None:
        parts.append(section("Words out of updates", _inversion(report.inversion)))
    return page(f"audit {report.name} | fedaipc", *parts)


def write_plots(report: AuditReport, folder: Path) -> None:
    """PNG and SVG of each. Raises OutputError."""
    with drawing():
        for name, figure in figures(report).items():
            for ending in (".png", ".svg"):
                write_file(
                    folder / f"{name}{ending}", plot_style.figure_bytes(figure, ending, name)
                )


def figures(report: AuditReport) -> dict[str, Figure]:
    """By name; call inside `drawing()`."""
    out = {"bounds": _bounds(report.settings)}
    if any(one.membership is not None for one in report.settings):
        out["roc"] = _roc(report.settings)
    return out


def setting_name(setting: Setting) -> str:
    return "not private" if setting.epsilon is None else f"epsilon {setting.epsilon:g}"


def verdict(setting: Setting) -> str:
    """Of the promise; a dash where there is none."""
    if setting.canary.promised is None:
        return formatting.UNKNOWN
    return "holds" if setting.canary.holds else REFUTED


def rate_text(share: float, fpr: float, outsiders: int) -> str:
    """A dash where so few outsiders were judged that none may be called a member."""
    return f"{share:.4f}" if fpr * outsiders >= 1 else formatting.UNKNOWN


def _bounds(settings: Sequence[Setting]) -> Figure:
    figure = new_figure(height=1.6 + 0.5 * len(settings))
    axes = figure.add_subplot()
    places = range(len(settings))
    lower = [one.canary.bound.lower for one in settings]
    axes.barh(places, lower, height=0.5, color=plot_style.VERMILLION, label="at least, by attack")
    for place, one in zip(places, settings, strict=True):
        if one.canary.promised is not None:
            axes.plot(
                one.canary.promised, place, marker="|", markersize=22, markeredgewidth=3,
                color=plot_style.BLUE, linestyle="none",
                label="at most, by promise" if place == _first_private(settings) else None,
            )  # fmt: skip
    axes.set_yticks(list(places), [setting_name(one) for one in settings])
    axes.invert_yaxis()
    axes.set_xlabel("epsilon of one record")
    axes.set_title("what an attack reached, and what was promised")
    put_legend(figure, axes.get_legend_handles_labels()[0])
    return figure


def _first_private(settings: Sequence[Setting]) -> int:
    return next(n for n, one in enumerate(settings) if one.canary.promised is not None)


def _roc(settings: Sequence[Setting]) -> Figure:
    figure = new_figure(height=5.4)
    axes = figure.add_subplot()
    for place, one in enumerate(settings[: len(plot_style.PALETTE)]):
        if one.membership is None:
            continue
        colour = plot_style.PALETTE[place]
        for curve, dash, kind in (
            (one.membership.likelihood_ratio, "-", "ratio"),
            (one.membership.loss, "--", "loss"),
        ):
            points = [(x, y) for x, y in zip(curve.fpr, curve.tpr, strict=True) if x >= _MIN / 10]
            axes.plot(
                *zip(*points, strict=True), color=colour, linestyle=dash,
                label=f"{setting_name(one)}, {kind}",
            )  # fmt: skip
    axes.plot([_MIN, 1], [_MIN, 1], color=plot_style.GREY, linestyle=":", label="guessing")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(_MIN, 1)
    axes.set_ylim(_MIN, 1)
    axes.set_xlabel("outsiders called members")
    axes.set_ylabel("members found")
    axes.set_title("membership inference on the released model")
    put_legend(figure, axes.get_legend_handles_labels()[0])
    return figure


def _canary_words(report: AuditReport) -> str:
    count = report.pcs * report.canaries
    return (
        f"<p>{count:,} canaries (real texts with wrong labels, {report.canaries:,} on each of "
        f"{report.pcs} PCs) were each in or out of the data by a coin. A server that knows every "
        "text but the coins guessed them from all updates of one real run; how many guesses were "
        "right bounds epsilon from below (Steinke, Nasr and Jagielski 2023). The updates were not "
        "sealed: the promise does not count on that.</p>"
    )


def _canaries(report: AuditReport) -> str:
    rows = [
        (
            setting_name(one),
            formatting.UNKNOWN
            if one.canary.promised is None
            else formatting.at_most(one.canary.promised),
            formatting.at_least(one.canary.bound.lower),
            f"{one.canary.bound.right:,} of {one.canary.bound.guesses:,}",
            f"{one.canary.accuracy:.3f}",
            formatting.UNKNOWN if one.test_accuracy is None else f"{one.test_accuracy:.3f}",
            verdict(one),
        )
        for one in report.settings
    ]
    head = ("setting", "promised, at most", "reached, at least", "right guesses", "of all coins",
            "test accuracy", "promise")  # fmt: skip
    return table(head, rows, words_in=(0, 6))


def _membership(settings: Sequence[Setting]) -> str:
    rows = [
        (
            setting_name(one), kind, f"{curve.auc:.3f}",
            rate_text(curve.tpr_at_01_percent, 0.001, one.membership.outsiders),
            rate_text(curve.tpr_at_1_percent, 0.01, one.membership.outsiders),
            one.membership.runs, f"{one.membership.members:,}", f"{one.membership.outsiders:,}",
        )
        for one in settings
        if one.membership is not None
        for kind, curve in (
            ("likelihood ratio", one.membership.likelihood_ratio), ("loss", one.membership.loss),
        )
    ]  # fmt: skip
    head = (
        "setting",
        "attack",
        "AUC",
        "TPR at 0.1 % FPR",
        "TPR at 1 % FPR",
        "runs",
        "members",
        "outsiders",
    )
    return table(head, rows, words_in=(0, 1))


def _inversion(found: Inversion) -> str:
    texts = "".join(f"<li>{escape(text)}</li>" for text in found.texts)
    return (
        f"<p>The texts of one PC:</p><ul>{texts}</ul><p>Words read from what its server gets, the "
        "surest first; those that are in the texts are bold.</p>"
        + "".join(_reading(reading) for reading in found.readings)
    )


def _reading(reading: Reading) -> str:
    shown = [
        f"<strong>{escape(word)}</strong>" if right else escape(word)
        for word, right in list(zip(reading.words, reading.right, strict=True))[:_WORDS]
    ]
    return (
        f"<h3>{escape(reading.source)}: {reading.recall:.0%} of the words "
        f"(by chance {reading.chance:.1%})</h3><p>{' '.join(shown)}</p>"
    )
