"""An audit on one page, with plots: promise beside attack, ROC curves, words that were read."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from fedaipc.lab.audit.inversion import Inversion
from fedaipc.lab.audit.report import AuditReport, Setting
from fedaipc.report import formatting, plot_style
from fedaipc.report.plot_style import drawing, new_axes, put_legend
from fedaipc.report.table import Alarm, Table
from fedaipc.report.template import render

_MIN = 1e-3  # of the axes of a ROC
REFUTED = "REFUTED"


def audit_page(report: AuditReport) -> str:
    """The whole page; needs no network."""
    return render(
        "audit.html.j2",
        report=report,
        refuted=[setting_name(one) for one in report.contradictions],
        plots=plot_style.inline_all(figures(report)),
        canaries=canary_table(report.settings),
        membership=membership_table(report.settings),
    )


def setting_name(setting: Setting) -> str:
    if setting.epsilon is None:
        return "not private"
    return f"epsilon {setting.epsilon:g}{', sums' * (setting.noise == 'distributed')}"


def verdict(setting: Setting) -> str:
    """Whether the promise holds; a dash for a run without a promise."""
    if setting.canary.promised is None:
        return formatting.UNKNOWN
    return "holds" if setting.canary.holds else Alarm(REFUTED)


def canary_table(settings: Sequence[Setting]) -> Table:
    """What was promised at each budget, and what guessing the canaries has reached."""
    rows = [
        (
            setting_name(one),
            "nothing"
            if one.canary.promised is None
            else formatting.at_most(one.canary.promised),
            formatting.at_least(one.canary.bound.lower),
            f"{one.canary.bound.right:,} of {one.canary.bound.guesses:,}",
            f"{one.canary.accuracy:.3f}",
            formatting.UNKNOWN if one.test_accuracy is None else f"{one.test_accuracy:.3f}",
            verdict(one),
        )
        for one in settings
    ]  # fmt: skip
    columns = ("setting", "promised, at most", "reached, at least", "right guesses",
               "of all coins", "test accuracy", "promise")  # fmt: skip
    return Table(columns, rows, words=(0, 6))


def membership_table(settings: Sequence[Setting]) -> Table:
    """How well two attacks tell members from outsiders; a dash where no outsider may be called a
    member.
    """

    def rate(share: float, fpr: float, outsiders: int) -> str:
        return f"{share:.4f}" if fpr * outsiders >= 1 else formatting.UNKNOWN

    rows = [
        (
            setting_name(one), kind, f"{curve.auc:.3f}",
            rate(curve.tpr_at_01_percent, 0.001, one.membership.outsiders),
            rate(curve.tpr_at_1_percent, 0.01, one.membership.outsiders),
            one.membership.runs, f"{one.membership.members:,}", f"{one.membership.outsiders:,}",
        )
        for one in settings
        if one.membership is not None
        for kind, curve in (
            ("likelihood ratio", one.membership.likelihood_ratio), ("loss", one.membership.loss),
        )
    ]  # fmt: skip
    columns = ("setting", "attack", "AUC", "TPR at 0.1 % FPR", "TPR at 1 % FPR", "runs",
               "members", "outsiders")  # fmt: skip
    return Table(columns, rows, words=(0, 1))


def reading_table(found: Inversion) -> Table:
    """How many words of a PC's texts were read, and from what."""
    rows = [(one.source, f"{one.recall:.0%}", f"{one.chance:.1%}") for one in found.readings]
    return Table(("words read from", "recovered", "by chance"), rows)


@drawing()
def figures(report: AuditReport) -> dict[str, Figure]:
    """All plots by their names."""
    out = {"bounds": _bounds(report.settings)}
    if any(one.membership is not None for one in report.settings):
        out["roc"] = _roc(report.settings)
    return out


def _bounds(settings: Sequence[Setting]) -> Figure:
    figure, axes = new_axes(
        "what an attack reached, and what was promised", "epsilon of one record",
        height=1.6 + 0.5 * len(settings),
    )  # fmt: skip
    places = range(len(settings))
    lower = [one.canary.bound.lower for one in settings]
    axes.barh(places, lower, height=0.5, color=plot_style.VERMILLION, label="at least, by attack")
    promised = [
        (one.canary.promised, place)
        for place, one in zip(places, settings, strict=True)
        if one.canary.promised is not None
    ]
    if promised:
        axes.plot(
            *zip(*promised, strict=True), marker="|", markersize=22, markeredgewidth=3,
            color=plot_style.BLUE, linestyle="none", label="at most, by promise",
        )  # fmt: skip
    axes.set_yticks(list(places), [setting_name(one) for one in settings])
    axes.invert_yaxis()
    put_legend(figure)
    return figure


def _roc(settings: Sequence[Setting]) -> Figure:
    figure, axes = new_axes(
        "membership inference on the released model", "outsiders called members", "members found",
        height=5.4,
    )  # fmt: skip
    for place, one in enumerate(settings[: len(plot_style.PALETTE)]):
        if one.membership is None:
            continue
        for curve, dash, kind in (
            (one.membership.likelihood_ratio, "-", "ratio"),
            (one.membership.loss, "--", "loss"),
        ):
            points = [(x, y) for x, y in zip(curve.fpr, curve.tpr, strict=True) if x >= _MIN / 10]
            axes.plot(
                *zip(*points, strict=True), color=plot_style.PALETTE[place], linestyle=dash,
                label=f"{setting_name(one)}, {kind}",
            )  # fmt: skip
    axes.plot([_MIN, 1], [_MIN, 1], color=plot_style.GREY, linestyle=":", label="guessing")
    axes.set(xscale="log", yscale="log", xlim=(_MIN, 1), ylim=(_MIN, 1))
    put_legend(figure)
    return figure
