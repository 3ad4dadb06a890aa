"""What the terminal shows, and the words and digits that all outputs share."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from fedaipc.cli.report import report
from fedaipc.errors import OutputError
from fedaipc.report import formatting, run_tables
from fedaipc.results import Score, WarmUpFacts
from tests.support.results import begun_results, make_results

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import RenderableType

    from fedaipc.results import Results

BOLD_RED = "\x1b[1;31m"


def _shown(thing: RenderableType, width: int = 120, *, color: bool = False) -> str:
    console = Console(width=width, force_terminal=color, color_system="standard" if color else None)
    with console.capture() as capture:
        console.print(thing)
    return capture.get()


def test_summary_states_accuracy_with_its_error_and_epsilon() -> None:
    text = _shown(run_tables.summary(make_results()))
    assert "0.768 ± 0.009" in text
    assert "epsilon 7.97 at delta 1e-5, per record" in text
    assert formatting.NOT_PRIVATE not in text
    assert "40 of 40, 1 void attempt" in text
    assert "1 with no budget left, 1 absent" in text


@pytest.mark.parametrize(("majority", "said"), [(0.768, True), (0.76, True), (0.75, False)])
def test_a_model_that_is_no_better_than_the_commonest_label_is_called_so(
    majority: float, said: bool
) -> None:
    """Test accuracy is 0.768, its standard error 0.009."""
    run = make_results()
    run = run.model_copy(update={"data": run.data.model_copy(update={"majority": majority})})
    line = (
        "ccuracy is within the standard error of always guessing the commonest label "
        f"({majority:.3f}): the model learned almost nothing"
    )
    assert (f"a{line}" in " ".join(_shown(run_tables.summary(run)).split())) == said
    assert (f"A{line}." in formatting.headline(run)) == said


def test_a_model_below_the_commonest_label_is_not_said_to_be_near_it() -> None:
    run = make_results()
    run = run.model_copy(update={"data": run.data.model_copy(update={"majority": 0.9})})
    assert "Accuracy is below always guessing the commonest label (0.900)" in formatting.headline(
        run
    )


def test_what_was_noticed_about_the_texts_stands_in_the_summary() -> None:
    run = make_results()
    notes = ("left out: a.csv: 3 of 90 records cannot be used",)
    run = run.model_copy(update={"data": run.data.model_copy(update={"notes": notes})})
    assert notes[0] in _shown(run_tables.summary(run))


def test_not_private_is_bold_red_and_hides_the_epsilon() -> None:
    run = make_results(not_private=("insecure test seed",))
    for thing in (run_tables.summary(run), run_tables.compare([run, make_results(name="other")])):
        assert f"{BOLD_RED}NOT PRIVATE" in _shown(thing, color=True)
    assert "insecure test seed" in _shown(run_tables.summary(run))
    assert "7.97" not in _shown(run_tables.summary(run))


def test_an_epsilon_that_rests_on_sums_is_marked() -> None:
    run = make_results()
    shared = run.privacy.model_copy(update={"local_epsilon": 40.0, "honest": 6})
    other = run.model_copy(update={"privacy": shared})
    assert f"epsilon {formatting.cost_text(run)} at delta" in formatting.headline(run)
    assert formatting.cost_text(other) == f"{formatting.cost_text(run)} (sums)"
    assert "(sums) at delta 1e-5" in formatting.headline(other)
    assert "(sums): its noise is distributed" in _shown(run_tables.compare([run, other]))
    assert "(sums)" not in _shown(run_tables.compare([run]))
    empty = begun_results().model_copy(update={"privacy": shared})
    assert formatting.cost_text(empty) == formatting.UNKNOWN


def test_the_time_of_a_run_says_that_its_warm_up_is_not_in_it() -> None:
    warm = WarmUpFacts(base="minilm-l6", source="short-reviews", texts=9, seconds=60.0)
    run = make_results(warm_up=warm)
    words = "3 min 41 s without the warm-up"
    assert words in " ".join(_shown(run_tables.summary(run)).split())
    assert dict(formatting.key_figures(run))["time"] == words
    assert "time: without the warm-up" in _shown(run_tables.compare([run]))
    assert "without" not in _shown(run_tables.summary(make_results()))
    assert "without" not in _shown(run_tables.compare([make_results()]))


def test_an_accuracy_without_a_standard_error_names_none() -> None:
    run = make_results(standard_error=0.0)
    assert "Test accuracy 0.768 (2,000 texts;" in formatting.headline(run)
    assert "± 0.009 (standard error, 2,000 texts;" in formatting.headline(make_results())


@pytest.mark.parametrize("width", [80, 120])
def test_compare_keeps_numbers_whole(width: int) -> None:
    runs = [make_results(name=f"run-{number}") for number in range(3)]
    text = _shown(run_tables.compare(runs), width)
    assert text.count("0.768 ± 0.009") == 3
    assert "on minilm-l6" in text


def test_compare_tells_runs_of_one_name_apart_and_warns() -> None:
    runs = [make_results(run_id="first"), make_results(run_id="second")]
    assert formatting.run_names(runs) == ["demo (first)", "demo (second)"]
    assert "different test sets" not in _shown(run_tables.compare(runs))
    data = runs[0].data.model_copy(update={"test": 17})
    assert "different test sets" in _shown(run_tables.compare([runs[0], make_results(data=data)]))


def test_strings_cannot_steer_the_terminal() -> None:
    hostile = "\x1b[2J[bold]x[/bold]\n\N{RIGHT-TO-LEFT OVERRIDE}"
    run = make_results(name=hostile, not_private=(hostile,))
    for thing in (run_tables.summary(run), run_tables.compare([run])):
        text = _shown(thing, 200)
        assert "\x1b" not in text
        assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in text
        assert "[bold]x[/bold]" in text


def test_a_run_without_scores_can_be_shown() -> None:
    run = begun_results()
    assert "not measured yet" in _shown(run_tables.summary(run))
    assert "No test scores yet" in _shown(run_tables.classes(run))
    assert "[running]" in _shown(run_tables.compare([run]))
    assert "What the PCs have spent is in their ledgers" in formatting.headline(run)


@pytest.mark.parametrize(
    ("epsilon", "text"),
    [
        (8.0, "8.00"),
        (7.991, "8.00"),
        (8.0001, "8.01"),
        (0.3812, "0.382"),
        (0.0, "0.000"),
        (None, "-"),
    ],
)
def test_epsilon_is_rounded_up(epsilon: float | None, text: str) -> None:
    assert formatting.epsilon_text(epsilon) == text


def test_bounds_are_rounded_to_the_safe_side() -> None:
    assert (formatting.at_most(7.341412), formatting.at_least(7.341912)) == ("7.342", "7.341")
    assert (formatting.at_most(8.0), formatting.at_least(8.0)) == ("8.000", "8.000")
    assert (formatting.at_most(0.9146, 2), formatting.at_least(1.526, 2)) == ("0.92", "1.52")


@pytest.mark.parametrize(
    ("accuracy", "error", "text"),
    [
        (0.7684, 0.0094, "0.768 ± 0.009"),
        (0.7684, 0.042, "0.77 ± 0.04"),
        (0.7684, 0.31, "0.77 ± 0.31"),
        (0.76841, 0.0003, "0.7684 ± 0.0003"),
        (1.0, 0.0, "1.000"),
        (0.5, None, "0.500"),
    ],
)
def test_accuracy_has_the_digits_it_deserves(
    accuracy: float, error: float | None, text: str
) -> None:
    assert formatting.accuracy_text(accuracy, error) == text


def test_sizes_and_times() -> None:
    assert [formatting.size_text(n) for n in (0, 1023, 1536, 3 * 2**30, None)] == [
        "0 B", "1023 B", "1.5 KiB", "3.0 GiB", "-",
    ]  # fmt: skip
    assert [formatting.duration_text(s) for s in (0.04, 59.96, 187, 3599.6, 7500)] == [
        "0.0 s", "1 min 00 s", "3 min 07 s", "1 h 00 min", "2 h 05 min",
    ]  # fmt: skip
    assert [formatting.delta_text(d) for d in (1e-5, 2.5e-6, 0.001)] == ["1e-5", "2.5e-6", "0.001"]


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(report)
    return app


def _written(folder: Path, results: Results) -> str:
    results.write(folder)
    return str(folder)


def test_command_shows_one_run(tmp_path: Path, app: typer.Typer) -> None:
    run = _written(tmp_path / "a", make_results())
    done = CliRunner().invoke(app, [run])
    assert done.exit_code == 0, done.output
    assert "0.768 ± 0.009" in done.output
    assert "positive" in done.output
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["results.json"]


def test_command_writes_again(tmp_path: Path, app: typer.Typer) -> None:
    run = _written(tmp_path / "a", make_results(pcs=3, rounds=2))
    assert CliRunner().invoke(app, [run, "--write"]).exit_code == 0
    assert (tmp_path / "a" / "report.html").is_file()
    assert len(list((tmp_path / "a" / "plots").iterdir())) == 6


def test_command_compares(tmp_path: Path, app: typer.Typer) -> None:
    runs = [_written(tmp_path / name, make_results(name=name, rounds=3)) for name in "ab"]
    assert CliRunner().invoke(app, [*runs, "--plot", str(tmp_path)]).exit_code == 0
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")
    shown = CliRunner().invoke(app, [*runs, "--json"])
    assert [tree["name"] for tree in json.loads(shown.stdout)] == ["a", "b"]


def test_command_refuses_a_folder_without_results(tmp_path: Path, app: typer.Typer) -> None:
    done = CliRunner().invoke(app, [str(tmp_path / "gone")])
    assert isinstance(done.exception, OutputError)


def test_a_warm_up_is_told_with_where_it_left_the_model() -> None:
    warm = WarmUpFacts(base="minilm-l6", source="short-reviews", texts=2031, seconds=125.0)
    start = Score(accuracy=0.765, macro_f1=0.76, loss=0.5, examples=2000)
    text = _shown(run_tables.summary(make_results(warm_up=warm, start=start)))
    assert "minilm-l6, warmed up on 2,031 public texts of short-reviews" in text
    took = formatting.duration_text(125.0)
    assert f"{took}; validation accuracy 0.765 before round 1" in text
    assert "warmed up" not in _shown(run_tables.summary(make_results()))


def test_a_fleets_epsilon_is_that_of_the_run() -> None:
    """Ledgers of real PCs are their owners'."""
    run = make_results(engine="fleet").model_copy(update={"pcs": ()})
    spent = formatting.epsilon_text(run.rounds[-1].epsilon)
    assert f"epsilon {spent} in this run at delta" in _shown(run_tables.summary(run))


def test_memory_is_said_to_be_the_coordinators_where_others_played_the_pcs() -> None:
    run = make_results()
    assert "peak memory 1.2 GiB" in _shown(run_tables.summary(run))
    several = run.model_copy(update={"machine": run.machine.model_copy(update={"workers": 2})})
    assert "peak memory of the coordinator 1.2 GiB" in _shown(run_tables.summary(several))


def test_a_headline_is_plain_text_on_one_line() -> None:
    run = make_results()
    model = run.model.model_copy(update={"base": "<b>a & b</b>\n\x1b[2J"})
    text = formatting.headline(run.model_copy(update={"model": model}))
    assert text.startswith("<b>a & b</b>\\n\\x1b[2J (bitfit, mean pooling) was fine-tuned on 20 ")
