"""One self-contained page per run: no network, no script, readable in ten years."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING

from fedaipc import bounds
from fedaipc.report import formatting
from fedaipc.report.markup import escape, facts, folded, inline_svg, page, section, table
from fedaipc.report.plot_style import SCREEN_DOTS, drawing, png_bytes
from fedaipc.report.plots import figures, svg_plots, write_plots
from fedaipc.results import write_file

if TYPE_CHECKING:
    from pathlib import Path

    from fedaipc.results import PrivacyFacts, Results, RoundResult

REPORT_FILE = "report.html"
CONFIG_FILE = "config.toml"
PLOTS_FOLDER = "plots"
LONG_TABLE = 30  # rows; longer tables start folded
_ALT = {
    "accuracy": "Line plot: accuracy on the validation set by round",
    "epsilon": "Bar plot: epsilon spent by each PC beside its lifetime budget",
    "examples": "Bar plot: number of examples on each PC",
}


def write_report(results: Results, run_folder: Path) -> Path:
    """Write `report.html` into the run's folder, with its `config.toml` if there; return the path.

    Raises OutputError: the folder cannot be written.
    """
    try:
        config = bounds.read_text(run_folder / CONFIG_FILE, bounds.MAX_SETTINGS, errors="replace")
    except OSError:
        # The report is worth having without it: an old run may have been moved by hand.
        config = None
    path = run_folder / REPORT_FILE
    write_file(path, report_page(results, config).encode())
    return path


def write_all(results: Results, run_folder: Path) -> list[Path]:
    """Write `plots/` and `report.html` into the run's folder. Raises OutputError."""
    plots = write_plots(results, run_folder / PLOTS_FOLDER)
    return [*plots, write_report(results, run_folder)]


def report_page(results: Results, config: str | None) -> str:
    """The whole page; `config` is the text of the resolved config.toml."""
    title = f"{formatting.NOT_PRIVATE}: {results.name}" if results.not_private else results.name
    return page(
        f"{title} | fedaipc report",
        _head(results),
        section("What is promised", facts(formatting.privacy_statement(results)), _terms(results)),
        section("Plots", *_plots(results)),
        section("Test set by label", _classes(results)),
        section("PCs", _pcs(results)),
        section("Rounds", _rounds(results)),
        section("Model and data", _model(results)),
        section("Configuration", _config(config)),
        section("Machine", _machine(results)),
    )


def summary_html(results: Results) -> str:
    """What a notebook shows of a run: the headline, the numbers, the plots as pictures."""
    rows = [
        ("test accuracy", formatting.test_text(results)),
        ("epsilon, at most", _cost(results)),
        ("PCs", f"{formatting.pc_count(results):,}"),
        ("rounds", f"{formatting.done_rounds(results):,}"),
        ("time", formatting.duration_text(results.seconds)),
    ]
    parts = [f"<p>{escape(formatting.headline(results))}</p>", facts(rows)]
    with drawing():
        for name, figure in figures(results).items():
            picture = b64encode(png_bytes(figure, SCREEN_DOTS)).decode()
            parts.append(
                f'<img alt="{escape(_ALT[name])}" style="max-width: 48%" '
                f'src="data:image/png;base64,{picture}">'
            )
    return "\n".join(parts)


def _cost(results: Results) -> str:
    if results.not_private:
        return formatting.NOT_PRIVATE
    return formatting.epsilon_text(formatting.spent_epsilon(results))


def _head(results: Results) -> str:
    banner = ""
    if results.not_private:
        reasons = escape(formatting.reasons_text(results))
        banner = f'<p class="alarm"><strong>{formatting.NOT_PRIVATE}</strong><br>{reasons}</p>'
    ended = f" to {results.finished}" if results.finished else ""
    resumed = (
        f", resumed {formatting.count_text(results.resumed, 'time')}" if results.resumed else ""
    )
    line = (
        f"Run {results.run_id}, {results.status}{resumed}; {results.started}{ended}; "
        f"engine {results.engine}; fedaipc {results.fedaipc}"
    )
    return "\n".join(
        [
            f"<header>\n<h1>{escape(results.name)}</h1>",
            f'<p class="soft">{escape(line)}</p>',
            banner,
            f'<p class="lead">{escape(formatting.headline(results))}</p>',
            _cards(results),
            "</header>",
        ]
    )


def _cards(results: Results) -> str:
    test = results.test
    cards = [
        ("test accuracy", formatting.test_text(results), ""),
        ("test macro-F1", formatting.UNKNOWN if test is None else f"{test.macro_f1:.3f}", ""),
        ("epsilon, at most", _cost(results), " bad" if results.not_private else ""),
        ("PCs", f"{formatting.pc_count(results):,}", ""),
        ("rounds", f"{formatting.done_rounds(results):,}", ""),
        ("time", formatting.duration_text(results.seconds), ""),
    ]
    items = "\n".join(
        f'<div class="card{kind}"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for name, value, kind in cards
    )
    return f'<div class="cards">\n{items}\n</div>'


def _terms(results: Results) -> str:
    privacy: PrivacyFacts = results.privacy
    mechanism, dp_sgd = privacy.schedule.mechanism, privacy.dp_sgd
    rows: list[tuple[str, object]] = [
        ("mechanism", mechanism.kind),
        ("delta", formatting.delta_text(privacy.delta)),
        ("clip (L2 norm)", _plain(None if dp_sgd is None else dp_sgd.clip_norm)),
        ("noise multiplier", _plain(None if dp_sgd is None else dp_sgd.noise)),
        ("sampling rate", f"{mechanism.sampling_rate:g}"),
        ("schedule", f"{privacy.rounds:,} rounds x {privacy.schedule.steps:,} local steps"),
        ("target epsilon", _plain(privacy.target_epsilon)),
    ]
    planned = privacy.planned_epsilon
    if planned is not None:
        shown = ", ".join(
            f"{formatting.epsilon_text(value)} ({name})"
            for name, value in (("RDP", planned.rdp), ("PRV", planned.prv), ("PLD", planned.pld))
        )
        rows.append(("epsilon of the schedule", shown))
    return "<h3>Terms of the job</h3>\n" + facts(rows)


def _plots(results: Results) -> list[str]:
    plots = svg_plots(results)
    drawn = [inline_svg(svg, name, _ALT[name]) for name, svg in plots.items()]
    return drawn or ["<p>Nothing measured yet.</p>"]


def _classes(results: Results) -> str:
    if not results.test_classes:
        return "<p>Not measured yet.</p>"
    rows = [
        (
            one.label,
            f"{one.precision:.3f}",
            f"{one.recall:.3f}",
            f"{one.f1:.3f}",
            f"{one.support:,}",
        )
        for one in results.test_classes
    ]
    content = table(("label", "precision", "recall", "F1", "texts"), rows)
    return _maybe_folded(len(rows), formatting.count_text(len(rows), "label"), content)


def _pcs(results: Results) -> str:
    simulated = formatting.is_simulation(results)
    head = ["PC", "state", *(("groups", "examples") if simulated else ())]
    head += ["size class", "epsilon spent", "lifetime budget", "RDP order", "charges"]
    rows = [
        (
            pc.name,
            pc.state,
            *((", ".join(pc.groups), _plain(pc.examples)) if simulated else ()),
            f"{pc.size_class:,}",
            formatting.epsilon_text(pc.epsilon),
            _plain(pc.lifetime_epsilon),
            _plain(pc.filter_order),
            f"{pc.charges:,}",
        )
        for pc in results.pcs
    ]
    content = table(head, rows, words_in=(0, 1, 2) if simulated else (0, 1))
    return _maybe_folded(len(rows), formatting.count_text(len(rows), "PC"), content)


def _rounds(results: Results) -> str:
    phases = list(dict.fromkeys(name for one in results.rounds for name in one.phases))
    head = ["round", "attempt", "", "asked", "arrived", "declined", "dropped", "down", "up"]
    head += ["epsilon", "accuracy", "loss", "time", *phases]
    rows = [_round(one, phases) for one in results.rounds]
    title = formatting.count_text(len(rows), "attempt") + ", each with its traffic and time"
    return folded(title, table(head, rows, words_in=(2,)))


def _round(one: RoundResult, phases: list[str]) -> tuple[object, ...]:
    return (
        one.round,
        one.attempt,
        "void" if one.void else "done",
        f"{one.asked:,}",
        f"{one.arrived:,}",
        f"{one.declined:,}",
        f"{one.dropped:,}",
        formatting.size_text(one.bytes_down),
        formatting.size_text(one.bytes_up),
        formatting.epsilon_text(one.epsilon),
        formatting.UNKNOWN if one.validation is None else f"{one.validation.accuracy:.3f}",
        formatting.loss_text(one.validation),
        formatting.duration_text(one.seconds),
        *(
            formatting.duration_text(one.phases[name]) if name in one.phases else formatting.UNKNOWN
            for name in phases
        ),
    )


def _model(results: Results) -> str:
    model, data = results.model, results.data
    trained = f"{model.trainable_parameters:,} of {model.total_parameters:,}"
    rows: list[tuple[str, object]] = [
        ("base model", formatting.base_text(results)),
        ("method", f"{model.method}, {model.pooling} pooling"),
        ("parameters trained", trained),
        ("device", f"{model.device}, {model.dtype}: {model.reason}"),
        ("SHA-256 of the base", model.base_hash),
        ("of the layout", model.layout_hash),
        ("of the final vector", model.vector_hash),
        ("data", data.source),
        ("labels", ", ".join(data.labels)),
        ("texts for training", _plain(data.train)),
        ("for validation, for test", f"{data.validation:,}, {data.test:,}"),
        ("training texts", formatting.fit_text(data.train_fit)),
        ("validation texts", formatting.fit_text(data.validation_fit)),
        *(("note", note) for note in (*data.notes, *formatting.results_warnings(results))),
    ]
    return facts(rows)


def _config(config: str | None) -> str:
    if config is None:
        return f"<p>There was no readable {CONFIG_FILE} beside the results.</p>"
    # Lines and tabs are the file's own; all else that is not printable is replaced.
    lines = "\n".join(escape(line.replace("\t", "    ")) for line in config.splitlines())
    return folded(CONFIG_FILE, f"<pre>{lines}</pre>")


def _machine(results: Results) -> str:
    machine = results.machine
    versions = {"Python": machine.python, "PyTorch": machine.torch, "Flower": machine.flwr,
                "Opacus": machine.opacus, "Transformers": machine.transformers}  # fmt: skip
    return facts(
        [
            ("processor", machine.processor),
            ("instructions", ", ".join(machine.instructions) or "not known"),
            ("cores, threads used", f"{machine.cores}, {machine.threads}"),
            ("memory", f"{machine.memory_gb:.1f} GB"),
            ("peak memory of the run", formatting.size_text(results.peak_memory_bytes)),
            *versions.items(),
        ]
    )


def _plain(value: float | None) -> str:
    if value is None:
        return formatting.UNKNOWN
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _maybe_folded(rows: int, title: str, content: str) -> str:
    return folded(title, content) if rows > LONG_TABLE else content
