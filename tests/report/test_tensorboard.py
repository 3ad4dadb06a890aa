from __future__ import annotations

from pathlib import Path

import pytest

from fedaipc.report.tracking import FOLDER, Scalars
from tests.support.results import make_results


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own imports
def test_scalars_read_back_as_the_rounds_were(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    results = make_results()
    scalars = Scalars(tmp_path)
    for one in results.rounds:
        scalars.on_round(one)
    scalars.close()
    events = EventAccumulator(str(tmp_path / FOLDER))
    events.Reload()
    measured = [r for r in results.rounds if r.validation is not None]
    read = events.Scalars("validation/accuracy")
    assert [event.step for event in read] == [r.round for r in measured]
    assert [event.value for event in read] == pytest.approx(
        [r.validation.accuracy for r in measured if r.validation], abs=1e-6
    )
    assert "privacy/epsilon" in events.Tags()["scalars"]
