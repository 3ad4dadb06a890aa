"""How results are put into words and digits: one home for tables, plots and the HTML report.

Digits claim no more than is known. An accuracy has as many as its standard error supports, and
an epsilon is rounded up. A run that was not private shows no epsilon as a promise.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from fedaipc.results import PlannedEpsilon, Results, Score, TextFit

NOT_PRIVATE = "NOT PRIVATE"
NOT_SEALED = "NOT SEALED: the server can read every PC's update"
UNKNOWN = "-"
_MAX_UNKNOWN, _MAX_CUT = 0.05, 0.2  # shares that need no warning


def accuracy_text(accuracy: float, error: float | None) -> str:
    """Digits as far as the standard error's first one, never fewer than two: "0.768 ± 0.009"."""
    if not error:
        return f"{accuracy:.3f}"
    digits = min(6, max(2, -math.floor(math.log10(error))))
    return f"{accuracy:.{digits}f} ± {error:.{digits}f}"


def test_text(results: Results) -> str:
    """Accuracy on the test set with its standard error, or a dash before it is known."""
    if results.test is None:
        return UNKNOWN
    return accuracy_text(results.test.accuracy, results.standard_error)


def no_better_text(results: Results) -> str | None:
    """A warning where the model is not better than always guessing the commonest label."""
    test, guess, error = results.test, results.data.majority, results.standard_error or 0
    if test is None or guess is None or test.accuracy > guess + error:
        return None
    where = "below" if test.accuracy < guess - error else "within the standard error of"
    return (
        f"accuracy is {where} always guessing the commonest label ({guess:.3f}): the model "
        "learned almost nothing"
    )


def epsilon_text(epsilon: float | None) -> str:
    """Two decimals (three below 1), rounded up: the printed number never promises too much."""
    return UNKNOWN if epsilon is None else at_most(epsilon, 2 if epsilon >= 1 else 3)


def at_most(epsilon: float, digits: int = 3) -> str:
    """An upper bound, rounded up."""
    # The small slack keeps a stored 8.0 from becoming 8.01 by its last bit.
    return f"{math.ceil(epsilon * 10**digits - 1e-6) / 10**digits:.{digits}f}"


def at_least(epsilon: float, digits: int = 3) -> str:
    """A lower bound, rounded down."""
    return f"{math.floor(epsilon * 10**digits + 1e-6) / 10**digits:.{digits}f}"


def spent_epsilon(results: Results) -> float | None:
    """The largest epsilon that any PC's ledger shows, over its life.

    None where it is not known, as in a run that was cut off, or where a ledger can claim none:
    what the rounds of one run cost says nothing about a PC's life.
    """
    spent = [pc.epsilon for pc in results.pcs]
    known = [epsilon for epsilon in spent if epsilon is not None]
    return max(known) if known and len(known) == len(spent) else None


def delta_text(delta: float) -> str:
    """For example "1e-5"."""
    return f"{delta:g}".replace("e-0", "e-")


def score_text(score: Score | None, name: Literal["accuracy", "macro_f1", "loss"]) -> str:
    """One number of a score, without its error."""
    value = None if score is None else getattr(score, name)
    return UNKNOWN if value is None else f"{value:.3f}"


def majority_text(share: float) -> str:
    """What a model must be better than."""
    return f"always the commonest label: {share:.3f}"


def size_text(count: float | None) -> str:
    """Bytes in binary units: "12.3 MiB"."""
    if count is None:
        return UNKNOWN
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration_text(seconds: float | None) -> str:
    """For example "4.2 s", "3 min 07 s" or "2 h 05 min"."""
    if seconds is None:
        return UNKNOWN
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def time_text(results: Results) -> str:
    """How long the rounds took: a warm-up is timed apart."""
    beside = "" if results.warm_up is None else " without the warm-up"
    return duration_text(results.seconds) + beside


def count_text(count: int, one: str) -> str:
    """For example "1 round" or "2,000 texts"."""
    return f"{count:,} {one}{'s' * (count != 1)}"


def number_text(value: float | None) -> str:
    """A whole number with commas, any other with six digits."""
    if value is None:
        return UNKNOWN
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def reasons_text(results: Results) -> str:
    return "; ".join(results.not_private)


def fit_text(fit: TextFit | None) -> str:
    """How texts fit the model."""
    if fit is None:
        return UNKNOWN
    return f"{fit.unknown_tokens:.1%} of tokens unknown, {fit.cut_texts:.1%} of texts cut"


def fit_warnings(**fits: TextFit | None) -> list[str]:
    """One line for each set of texts that fits badly, with what to do; sets by name.

    English texts in an English vocabulary have hardly an unknown token. With one in twenty, a
    sentence of twenty words has lost one of them. Where more than a fifth of the texts is cut,
    their ends are missing more often than accuracies differ by.
    """
    lines = []
    for name, fit in fits.items():
        if fit is not None and fit.unknown_tokens > _MAX_UNKNOWN:
            lines.append(
                f"{fit.unknown_tokens:.0%} of the tokens of the {name} texts are not in the "
                "model's vocabulary, so it learns nothing from them; take a base of the texts' "
                "own language and field"
            )
        if fit is not None and fit.cut_texts > _MAX_CUT:
            lines.append(
                f"{fit.cut_texts:.0%} of the {name} texts are longer than model.max_length and "
                "lose their ends; raise it, or give shorter texts"
            )
    return lines


def results_warnings(results: Results) -> list[str]:
    """What was done to the base, and which texts fit badly."""
    data = results.data
    fits = fit_warnings(training=data.train_fit, validation=data.validation_fit)
    return [*results.model.notes, *fits]


def aggregation_text(results: Results) -> str:
    """What the coordinator could see of the updates."""
    found = results.aggregation
    if found.kind == "plain":
        return NOT_SEALED
    return (
        f"sealed, {found.bits} bits: the server sees sums of {found.least} or more PCs, "
        f"of which {found.colluding} may be on its side"
    )


def traffic_text(results: Results) -> str:
    """Mean bytes of one PC in one round, both ways, and how much of it is not the update."""
    asked = sum(one.asked for one in results.rounds)
    if not asked:
        return UNKNOWN
    down = size_text(sum(one.bytes_down for one in results.rounds) / asked)
    up = size_text(sum(one.bytes_up for one in results.rounds) / asked)
    return f"{down} down, {up} up, per PC and round"


def run_names(runs: Sequence[Results]) -> list[str]:
    """A name for each run; where two runs share theirs, the run id tells them apart."""
    names = [run.name for run in runs]
    return [
        run.name if names.count(run.name) == 1 else f"{run.name} ({run.run_id})" for run in runs
    ]


def done_rounds(results: Results) -> int:
    return sum(not one.void for one in results.rounds)


def pc_count(results: Results) -> int:
    """How many PCs the run has; of one that was cut off, how many its largest round asked."""
    return len(results.pcs) or max((one.asked for one in results.rounds), default=0)


def is_simulation(results: Results) -> bool:
    """Only a simulator can know how many examples a PC holds."""
    return any(pc.examples is not None for pc in results.pcs)


def base_text(results: Results) -> str:
    """The base model, and what it was warmed up on."""
    warm = results.warm_up
    if warm is None:
        return results.model.base
    return f"{warm.base}, warmed up on {warm.texts:,} public texts of {warm.source}"


def cost_text(results: Results) -> str:
    """The epsilon that the run promises, as an upper bound; marked where it holds for sums only."""
    if results.not_private:
        return NOT_PRIVATE
    spent = spent_epsilon(results)
    sums = spent is not None and results.privacy.local_epsilon is not None
    return epsilon_text(spent) + (" (sums)" if sums else "")


def distributed_text(honest: int | None, local: float) -> str:
    """What distributed noise promises, and against whom; `local` is by RDP."""
    return (
        f"distributed noise: that holds against whoever sees sums and models, with {honest} honest "
        "PCs in each sum; against whoever reads one PC's own update in spite of secure aggregation "
        f"epsilon {at_most(local)} (RDP)"
    )


def planned_text(planned: PlannedEpsilon) -> str:
    """Epsilon of the job's schedule, by each accountant."""
    by = {"RDP": planned.rdp, "PRV": planned.prv, "PLD": planned.pld}
    return ", ".join(f"{epsilon_text(value)} ({name})" for name, value in by.items())


def key_figures(results: Results) -> list[tuple[str, str]]:
    """The numbers that readers look for first."""
    return [
        ("test accuracy", test_text(results)),
        ("test macro-F1", score_text(results.test, "macro_f1")),
        ("epsilon, at most", cost_text(results)),
        ("PCs", f"{pc_count(results):,}"),
        ("rounds", f"{done_rounds(results):,}"),
        ("time", time_text(results)),
    ]


def headline(results: Results) -> str:
    """What was trained, on how many PCs, how good it is, and what it cost in privacy."""
    from fedaipc.report.template import render

    return " ".join(render("headline.txt.j2", results=results).splitlines())
