"""Rich renderables for the terminal. Strings from files go in as `Text`, never as markup."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from fedaipc.report import formatting
from fedaipc.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from fedaipc.results import Results

ALARM = "bold red"


def summary(results: Results) -> RenderableType:
    """One run: what was trained, how well, at which epsilon, at what cost."""
    privacy, model, data = results.privacy, results.model, results.data
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")

    def row(name: str, value: Text | str) -> None:
        table.add_row(name, _text(value) if isinstance(value, str) else value)

    row("run", f"{results.name} ({results.run_id}), {results.status}")
    row("privacy", _privacy(results))
    sealed = formatting.aggregation_text(results)
    row("updates", Text(sealed, style=ALARM) if results.aggregation.kind == "plain" else sealed)
    row("test accuracy", _test_line(results))
    if (learned := formatting.no_better_text(results)) is not None:
        row("", Text(learned, style="yellow"))
    if results.test is not None:
        row("test macro-F1", f"{results.test.macro_f1:.3f}")
    if results.validation is not None:
        score = results.validation
        row("validation", f"accuracy {score.accuracy:.3f}, loss {formatting.loss_text(score)}")
    row(
        "model",
        f"{formatting.base_text(results)}, {model.method}, {model.trainable_parameters:,} of "
        f"{model.total_parameters:,} parameters trained",
    )
    if results.warm_up is not None and results.start is not None:
        took = formatting.duration_text(results.warm_up.seconds)
        row("warm-up", f"{took}; validation accuracy {results.start.accuracy:.3f} before round 1")
    row("data", f"{data.source}, {len(data.labels)} labels, {_sizes(results)}")
    for note in data.notes:
        row("", note)
    if data.validation_fit is not None:
        row("texts", formatting.fit_text(data.train_fit or data.validation_fit))
    for warning in formatting.results_warnings(results):
        row("note", Text(printable(warning), style="yellow"))
    row("PCs", _pc_line(results))
    row("rounds", _round_line(results))
    if (mechanism := privacy.dp_sgd) is not None:
        row(
            "noise",
            f"multiplier {mechanism.noise:.4g}, clip {mechanism.clip_norm:g}, sampling rate "
            f"{mechanism.sampling_rate:g}, "
            f"{formatting.count_text(privacy.schedule.steps, 'local step')}",
        )
    row("traffic", formatting.traffic_text(results))
    row("device", f"{model.device} {model.dtype}: {model.reason}")
    row("time", _time_line(results))
    return table


def per_class(results: Results) -> RenderableType:
    """Precision, recall and F1 of each label on the test set."""
    table = Table(title="Test set by label", title_justify="left")
    table.add_column("label", overflow="fold")
    for name in ("precision", "recall", "F1", "texts"):
        table.add_column(name, justify="right")
    for one in results.test_classes:
        values = [f"{value:.3f}" for value in (one.precision, one.recall, one.f1)]
        table.add_row(_text(one.label), *values, f"{one.support:,}")
    if not results.test_classes:
        return Text("No test scores yet.", style="dim")
    return table


def compare(runs: Sequence[Results]) -> RenderableType:
    """Several runs, one line each, in the order given."""
    bases = {formatting.base_text(run) for run in runs}
    title = "Runs" if len(bases) > 1 else f"Runs on {printable(*bases)}"
    table = Table(
        title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("run", overflow="fold", min_width=10)
    table.add_column("method", overflow="fold")
    for name in ("PCs", "rounds", "epsilon", "sealed", "test accuracy", "macro-F1", "time"):
        # "0.768 ± 0.009" must never be cut: half a number is a wrong number.
        table.add_column(name, justify="right", no_wrap=name not in {"epsilon", "time"})
    for name, run in zip(formatting.run_names(runs), runs, strict=True):
        private = not run.not_private
        unfinished = "" if run.status == "finished" else f" [{run.status}]"
        table.add_row(
            _text(name + unfinished),
            _text(
                run.model.method
                if len(bases) == 1
                else f"{formatting.base_text(run)} {run.model.method}"
            ),
            f"{formatting.pc_count(run):,}",
            f"{formatting.done_rounds(run):,}",
            formatting.epsilon_text(formatting.spent_epsilon(run))
            if private
            else Text(formatting.NOT_PRIVATE, style=ALARM),
            "yes" if run.aggregation.kind != "plain" else Text("NO", style=ALARM),
            formatting.test_text(run),
            f"{run.test.macro_f1:.3f}" if run.test is not None else formatting.UNKNOWN,
            formatting.duration_text(run.seconds),
        )
    note = "± one standard error of the test set's draw; epsilon: the most that any PC has spent."
    return Group(table, Text(note, style="dim"), *_comparison_warnings(runs))


def _comparison_warnings(runs: Sequence[Results]) -> list[Text]:
    lines = []
    if len({(run.data.source, run.data.test, run.data.labels) for run in runs}) > 1:
        lines.append(Text("The runs have different test sets: compare with care.", style="yellow"))
    deltas = {run.privacy.delta for run in runs if not run.not_private}
    if len(deltas) > 1:
        shown = ", ".join(formatting.delta_text(delta) for delta in sorted(deltas))
        lines.append(Text(f"The epsilons hold at different deltas: {shown}.", style="yellow"))
    return lines


def _text(value: str) -> Text:
    return Text(printable(value))


def _privacy(results: Results) -> Text:
    if results.not_private:
        line = Text(formatting.NOT_PRIVATE, style=ALARM)
        return line.append(f": {printable(formatting.reasons_text(results))}", style="not bold")
    privacy = results.privacy
    spent = formatting.epsilon_text(formatting.spent_epsilon(results))
    if results.engine == "fleet" and results.rounds:
        # What PCs spent before is in their own ledgers, which nobody here can see.
        spent = f"{formatting.epsilon_text(results.rounds[-1].epsilon)} in this run"
    return _text(
        f"epsilon {spent} at delta {formatting.delta_text(privacy.delta)}, per {privacy.unit}, "
        f"{privacy.schedule.mechanism.kind} with local noise"
    )


def _test_line(results: Results) -> Text:
    if results.test is None:
        return Text("not measured yet")
    line = Text(formatting.test_text(results), style="bold")
    line.append(f" on {formatting.count_text(results.test.examples, 'text')}", style="not bold")
    if results.data.majority is not None:
        line.append(f"; always the commonest label: {results.data.majority:.3f}", style="not bold")
    return line


def _sizes(results: Results) -> str:
    data = results.data
    train = "" if data.train is None else f"{data.train:,} train, "
    return f"{train}{data.validation:,} validation, {data.test:,} test texts"


def _pc_line(results: Results) -> str:
    states = [pc.state for pc in results.pcs]
    others = [
        f"{states.count(state)} {said}"
        for state, said in (("exhausted", "with no budget left"), ("absent", "absent"))
        if state in states
    ]
    return f"{formatting.pc_count(results):,}" + (f" ({', '.join(others)})" if others else "")


def _round_line(results: Results) -> str:
    done, void = formatting.done_rounds(results), sum(one.void for one in results.rounds)
    line = f"{done:,} of {results.privacy.rounds:,}"
    if void:
        line += f", {formatting.count_text(void, 'void attempt')}"
    if results.resumed:
        line += f", resumed {formatting.count_text(results.resumed, 'time')}"
    return line


def _time_line(results: Results) -> str:
    line = formatting.duration_text(results.seconds)
    if results.peak_memory_bytes is not None:
        line += f", peak memory {formatting.size_text(results.peak_memory_bytes)}"
    return line
