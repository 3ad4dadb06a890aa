"""The tables of a run, the same for the terminal, the page and the notebook."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from fedaipc.config import filter_name
from fedaipc.report import formatting
from fedaipc.report.table import Alarm, Caution, Strong, Table, facts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fedaipc.results import Results, RoundResult


def summary(results: Results) -> Table:
    """One run: what was trained, how well, at which epsilon, at what cost."""
    return facts(list(_summary(results)))


def _summary(results: Results) -> Iterator[tuple[str, str]]:
    privacy, model, data = results.privacy, results.model, results.data
    yield "run", f"{results.name} ({results.run_id}), {results.status}"
    yield "privacy", _privacy(results)
    sealed = formatting.aggregation_text(results)
    yield "updates", Alarm(sealed) if results.aggregation.kind == "plain" else sealed
    yield "test accuracy", _test_line(results)
    if (learned := formatting.no_better_text(results)) is not None:
        yield "", Caution(learned)
    if results.test is not None:
        yield "test macro-F1", formatting.score_text(results.test, "macro_f1")
    if (score := results.validation) is not None:
        loss = formatting.score_text(score, "loss")
        yield "validation", f"accuracy {score.accuracy:.3f}, loss {loss}"
    trained = f"{model.trainable_parameters:,} of {model.total_parameters:,} parameters trained"
    yield "model", f"{formatting.base_text(results)}, {model.method}, {trained}"
    if results.warm_up is not None and results.start is not None:
        took = formatting.duration_text(results.warm_up.seconds)
        yield "warm-up", f"{took}; validation accuracy {results.start.accuracy:.3f} before round 1"
    train = "" if data.train is None else f"{data.train:,} train, "
    sizes = f"{train}{data.validation:,} validation, {data.test:,} test texts"
    yield "data", f"{data.source}, {len(data.labels)} labels, {sizes}"
    for note in data.notes:
        yield "", note
    if data.validation_fit is not None:
        yield "texts", formatting.fit_text(data.train_fit or data.validation_fit)
    for warning in formatting.results_warnings(results):
        yield "note", Caution(warning)
    yield "PCs", _pc_line(results)
    yield "rounds", _round_line(results)
    if (mechanism := privacy.dp_sgd) is not None:
        steps = formatting.count_text(privacy.schedule.steps, "local step")
        clip = f"multiplier {mechanism.multiplier:.4g}, clip {mechanism.clip_norm:g}"
        record = f", sampling rate {mechanism.sampling_rate:g}, {steps}"
        yield "noise", clip + (record if privacy.unit == "record" else " of a PC's whole update")
    yield "traffic", formatting.traffic_text(results)
    yield "device", f"{model.device} {model.dtype}: {model.reason}"
    memory = ""
    if results.peak_memory_bytes is not None:
        whose = " of the coordinator" if (results.machine.workers or 1) > 1 else ""
        memory = f", peak memory{whose} {formatting.size_text(results.peak_memory_bytes)}"
    yield "time", formatting.time_text(results) + memory


def classes(results: Results) -> Table:
    """Precision, recall and F1 of each label on the test set."""
    rows = [
        (one.label, *(f"{share:.3f}" for share in (one.precision, one.recall, one.f1)),
         f"{one.support:,}")
        for one in results.test_classes
    ]  # fmt: skip
    notes = () if rows else ("No test scores yet.",)
    columns = ("label", "precision", "recall", "F1", "texts")
    return Table(columns, rows, title="Test set by label", notes=notes)


def pcs(results: Results) -> Table:
    """What each PC has spent; what it holds, where they are simulated."""
    known = formatting.is_simulation(results)
    rows = [
        (
            pc.name, pc.state,
            *((", ".join(pc.groups), formatting.number_text(pc.examples)) if known else ()),
            f"{pc.size_class:,}", formatting.epsilon_text(pc.epsilon),
            formatting.number_text(pc.lifetime_epsilon),
            formatting.UNKNOWN if pc.filter is None else filter_name(pc.filter), f"{pc.charges:,}",
        )
        for pc in results.pcs
    ]  # fmt: skip
    columns = (
        "PC", "state", *(("groups", "examples") if known else ()),
        "size class", "epsilon spent", "lifetime budget", "filter", "charges",
    )  # fmt: skip
    return Table(columns, rows, words=(0, 1, 2) if known else (0, 1))


def rounds(results: Results) -> Table:
    """Every attempt, with its traffic and time."""
    phases = list(dict.fromkeys(name for one in results.rounds for name in one.phases))
    columns = ("round", "attempt", "", "asked", "arrived", "declined", "dropped", "down", "up",
               "epsilon", "accuracy", "loss", "time", *phases)  # fmt: skip
    return Table(columns, [_round(one, phases) for one in results.rounds], words=(2,))


def _round(one: RoundResult, phases: Sequence[str]) -> tuple[object, ...]:
    return (
        one.round, one.attempt, "void" if one.void else "done",
        f"{one.asked:,}", f"{one.arrived:,}", f"{one.declined:,}", f"{one.dropped:,}",
        formatting.size_text(one.bytes_down), formatting.size_text(one.bytes_up),
        formatting.epsilon_text(one.epsilon),
        formatting.score_text(one.validation, "accuracy"),
        formatting.score_text(one.validation, "loss"),
        formatting.duration_text(one.seconds),
        *(formatting.duration_text(one.phases.get(name)) for name in phases),
    )  # fmt: skip


def compare(runs: Sequence[Results]) -> Table:
    """Several runs, one line each, in the order given."""
    bases = {formatting.base_text(run) for run in runs}
    rows = [
        (
            name if run.status == "finished" else f"{name} [{run.status}]",
            ("" if len(bases) == 1 else f"{formatting.base_text(run)} ") + run.model.method,
            f"{formatting.pc_count(run):,}", f"{formatting.done_rounds(run):,}",
            Alarm(formatting.NOT_PRIVATE) if run.not_private else formatting.cost_text(run),
            Alarm("NO") if run.aggregation.kind == "plain" else "yes",
            formatting.test_text(run), formatting.score_text(run.test, "macro_f1"),
            formatting.duration_text(run.seconds),
        )
        for name, run in zip(formatting.run_names(runs), runs, strict=True)
    ]  # fmt: skip
    note = "± one standard error of the test set's draw; epsilon: the most that any PC has spent"
    if any(run.privacy.local_epsilon is not None for run in runs):
        note += "; (sums): its noise is distributed, and protects sums and models alone"
    if any(run.warm_up is not None for run in runs):
        note += "; time: without the warm-up"
    columns = ("run", "method", "PCs", "rounds", "epsilon", "sealed", "test accuracy", "macro-F1",
               "time")  # fmt: skip
    title = "Runs" if len(bases) > 1 else f"Runs on {bases.pop()}"
    notes = (f"{note}.", *map(Caution, _comparison_warnings(runs)))
    return Table(columns, rows, words=(0, 1), title=title, notes=notes)


def _comparison_warnings(runs: Sequence[Results]) -> Iterator[str]:
    if len({(run.data.source, run.data.test, run.data.labels) for run in runs}) > 1:
        yield "The runs have different test sets: compare with care."
    deltas = {run.privacy.delta for run in runs if not run.not_private}
    if len(deltas) > 1:
        shown = ", ".join(formatting.delta_text(delta) for delta in sorted(deltas))
        yield f"The epsilons hold at different deltas: {shown}."


def _privacy(results: Results) -> str:
    if results.not_private:
        return Alarm(f"{formatting.NOT_PRIVATE}: {formatting.reasons_text(results)}")
    privacy = results.privacy
    spent = formatting.epsilon_text(formatting.spent_epsilon(results))
    if results.engine == "fleet" and results.rounds:
        # What PCs spent before is in their own ledgers, which nobody here can see.
        spent = f"{formatting.epsilon_text(results.rounds[-1].epsilon)} in this run"
    noise = "local noise"
    if privacy.local_epsilon is not None:
        local = formatting.epsilon_text(privacy.local_epsilon)
        noise = (
            f"distributed noise: against whoever sees sums and models, with "
            f"{privacy.honest} honest PCs in each sum; at most {local} against whoever reads one "
            "PC's own updates, over all attempts that the job allows"
        )
    return (
        f"epsilon {spent} at delta {formatting.delta_text(privacy.delta)}, per {privacy.unit}, "
        f"{privacy.schedule.mechanism.kind} with {noise}"
    )


def _test_line(results: Results) -> str:
    if results.test is None:
        return "not measured yet"
    texts = formatting.count_text(results.test.examples, "text")
    line = f"{formatting.test_text(results)} on {texts}"
    if results.data.majority is not None:
        line += f"; {formatting.majority_text(results.data.majority)}"
    return Strong(line)


def _pc_line(results: Results) -> str:
    states: Counter[str] = Counter(pc.state for pc in results.pcs)
    said = {"exhausted": "with no budget left", "absent": "absent"}
    others = ", ".join(f"{states[one]} {said[one]}" for one in said if states[one])
    return f"{formatting.pc_count(results):,}" + (f" ({others})" if others else "")


def _round_line(results: Results) -> str:
    done, void = formatting.done_rounds(results), sum(one.void for one in results.rounds)
    line = f"{done:,} of {results.privacy.rounds:,}"
    if void:
        line += f", {formatting.count_text(void, 'void attempt')}"
    if results.resumed:
        line += f", resumed {formatting.count_text(results.resumed, 'time')}"
    return line
