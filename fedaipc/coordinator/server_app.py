"""The coordinator as a Flower server app: open the run folder, run, write the results."""

from __future__ import annotations

import logging
import platform
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

import fedaipc
from fedaipc import machine
from fedaipc.config import DPSGD, SecAgg, Settings, load_settings
from fedaipc.coordinator.checkpoint import Checkpoint
from fedaipc.coordinator.coordinator import Coordinator
from fedaipc.coordinator.evaluation import Evaluation
from fedaipc.errors import BudgetExhausted
from fedaipc.model.base import base_hash
from fedaipc.model.card import model_card
from fedaipc.model.classifier import Classifier, read_vector
from fedaipc.model.device import choose_device
from fedaipc.model.export import export, write_card
from fedaipc.model.metrics import standard_error
from fedaipc.privacy.budget import NEIGHBOURS, local_epsilon, planned_epsilon
from fedaipc.protocol.job_folder import (
    CONFIG_FILE,
    TEST_FILE,
    VALIDATION_FILE,
    read_facts,
    read_job,
)
from fedaipc.protocol.round_terms import (
    colluding_members,
    hash_vector,
    job_thresholds,
    update_bound,
)
from fedaipc.results import (
    RESULTS_FILE,
    AggregationFacts,
    DataFacts,
    Engine,
    MachineFacts,
    ModelFacts,
    PlannedEpsilon,
    PrivacyFacts,
    Results,
    RoundResult,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from fedaipc.protocol.job import Job
    from fedaipc.secagg.roster import Roster

MODEL_FOLDER = "model"
EVENT = "fedaipc-round "

app = ServerApp()
_log = logging.getLogger(__name__)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the job of `run-folder`; progress goes to the log, one line a round."""
    folder = Path(str(context.run_config["run-folder"]))
    prepared = float(str(context.run_config.get("prepared-seconds", 0)))
    run_job(grid, folder, "flower", _print_event, prepared=prepared)


def make_server_app(
    folder: Path,
    on_round: Callable[[RoundResult], None],
    workers: int = 1,
    prepared: float = 0.0,
) -> ServerApp:
    """The same app with progress by call, for the in-process engine, whose PCs `workers` play."""
    local = ServerApp()

    @local.main()
    def _main(grid: Grid, context: Context) -> None:
        del context
        run_job(grid, folder, "in-process", on_round, workers=workers, prepared=prepared)

    return local


def _print_event(result: RoundResult) -> None:
    # One write, so that no other thread's output lands within the line.
    sys.stdout.write(f"{EVENT}{result.model_dump_json()}\n")
    sys.stdout.flush()


def run_job(
    grid: Grid,
    folder: Path,
    engine: Engine,
    on_round: Callable[[RoundResult], None],
    names: Collection[str] | None = None,
    workers: int | None = None,
    prepared: float = 0.0,
) -> None:
    """Run or continue the job in `folder`; leaves results.json, checkpoint and model there.

    `names` are those of all members, in a fleet. `workers` are the processes
    that play PCs, None where others start them. `prepared` is how many seconds these PCs took
    before, for the frozen layers: the results count them.
    """
    clock = time.monotonic() - prepared
    settings = load_settings(folder / CONFIG_FILE)
    signed, roster = read_job(folder)
    job = signed.job
    device = choose_device(settings.speed)
    classifier = Classifier(job.model, job.labels)
    classifier.use(device)
    cache = _cache(settings, folder)
    batch = settings.evaluation.batch
    validation = Evaluation(classifier, folder / VALIDATION_FILE, cache, batch)
    checkpoint = Checkpoint.load(folder, job.layout_hash)
    checkpoint = checkpoint or Checkpoint(
        layout_hash=job.layout_hash, vector=read_vector(classifier)
    )
    results = _facts(settings, job, roster, classifier, folder, engine, workers)
    if checkpoint.round == 0:
        start = validation.score(checkpoint.vector)[0]
        results = results.model_copy(update={"start": start})

    def report(result: RoundResult) -> None:
        on_round(result)
        _progress(results, checkpoint, clock).write(folder)

    _progress(results, checkpoint, clock).write(folder)
    coordinator = Coordinator(
        folder=folder,
        settings=settings,
        job=signed,
        roster=roster,
        checkpoint=checkpoint,
        validation=validation,
        claims_epsilon=job.privacy.private and not results.not_private,
        on_round=report,
        names=names,
    )
    try:
        coordinator.run(grid)
    except BudgetExhausted:
        stopped = _progress(results, checkpoint, clock).model_copy(update={"status": "stopped"})
        stopped.write(folder)
        if checkpoint.round:  # the budget for it was spent: keep the result
            _finish(stopped, folder, settings, classifier, checkpoint, validation)
        raise
    done = _progress(results, checkpoint, clock).model_copy(update={"status": "finished"})
    _finish(done, folder, settings, classifier, checkpoint, validation)


def _finish(
    results: Results,
    folder: Path,
    settings: Settings,
    classifier: Classifier,
    checkpoint: Checkpoint,
    validation: Evaluation,
) -> None:
    """Save the model, measure it on the test set, once, and save the results."""
    started = time.monotonic()
    layers = classifier.hf.config.num_hidden_layers
    model = folder / MODEL_FOLDER
    export(
        model,
        classifier.settings,
        classifier.labels,
        classifier.layout,
        checkpoint.vector,
        card=model_card(results, classifier.settings, layers),
        not_private=results.not_private,
    )
    cache, batch = _cache(settings, folder), settings.evaluation.batch
    test = Evaluation(classifier, folder / TEST_FILE, cache, batch)
    score, classes = test.score(checkpoint.vector)
    done = results.model_copy(
        update={
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": results.seconds + time.monotonic() - started,
            "validation": validation.score(checkpoint.vector)[0],
            "test": score,
            "test_classes": tuple(classes),
            "standard_error": standard_error(score.accuracy, score.examples),
            "data": results.data.model_copy(update={"majority": test.majority}),
            "peak_memory_bytes": peak_memory(),
        }
    )
    write_card(model, model_card(done, classifier.settings, layers))
    done.write(folder)


def peak_memory() -> int:
    """Largest resident memory of this process so far, in bytes."""
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return int(info.peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _progress(results: Results, checkpoint: Checkpoint, clock: float) -> Results:
    facts = results.model.model_copy(update={"vector_hash": hash_vector(checkpoint.vector).hex()})
    return results.model_copy(
        update={
            "rounds": tuple(checkpoint.rounds),
            "seconds": results.seconds + time.monotonic() - clock,
            "model": facts,
        }
    )


def _facts(
    settings: Settings,
    job: Job,
    roster: Roster,
    classifier: Classifier,
    folder: Path,
    engine: Engine,
    workers: int | None,
) -> Results:
    """What is known before the first round; a run that is resumed keeps its start and its time."""
    before = Results.load(folder) if (folder / RESULTS_FILE).is_file() else None
    device, target = choose_device(settings.speed), settings.privacy
    data = read_facts(folder)
    return Results(
        fedaipc=fedaipc.__version__,
        name=folder.name if engine == "fleet" else settings.output.name,
        run_id=job.run,
        engine=engine,
        status="running",
        started=before.started if before else datetime.now(UTC).isoformat(timespec="seconds"),
        finished=None,
        seconds=before.seconds if before else 0,
        resumed=before.resumed + 1 if before else 0,
        not_private=tuple(data.pop("not_private")),
        privacy=PrivacyFacts(
            neighbours=NEIGHBOURS[job.privacy.unit],
            schedule=job.schedule,
            rounds=job.rounds,
            target_epsilon=target.epsilon if isinstance(target, DPSGD) else None,
            planned_epsilon=PlannedEpsilon(**planned_epsilon(job.schedule, job.rounds))
            if job.privacy.private
            else None,
            local_epsilon=local_epsilon([job.schedule.times(job.max_attempts)], job.privacy.delta)
            if isinstance(job.privacy, DPSGD) and job.privacy.distributed
            else None,
        ),
        aggregation=_aggregation(job, roster),
        model=ModelFacts(
            base=job.model.base,
            method=job.model.train.kind,
            pooling=job.model.pooling,
            trainable_parameters=classifier.layout.size,
            total_parameters=classifier.total_parameters,
            base_hash=base_hash(job.model.base, job.model.keep_layers),
            layout_hash=job.layout_hash,
            vector_hash="",
            device=str(device.torch),
            dtype=device.dtype,
            reason=device.reason,
            notes=tuple(data.pop("model_notes", ())),
        ),
        start=before.start if before else None,
        warm_up=data.pop("warm_up"),
        data=DataFacts(majority=None, **data),
        machine=MachineFacts(
            cores=machine.cpus(),
            threads=torch.get_num_threads(),
            workers=workers,
            memory_gb=round(machine.memory_total() / 2**30, 1),
            processor=machine.processor(),
            instructions=machine.instructions(),
            python=platform.python_version(),
            **{name: version(name) for name in ("torch", "flwr", "opacus", "transformers")},
        ),
    )


def _aggregation(job: Job, roster: Roster) -> AggregationFacts:
    secagg, members = job.aggregation, len(roster.members)
    group = min(len(group) for group in roster.groups(1, job.cohort))
    bounds = job_thresholds(job, members, group, group)
    return AggregationFacts(
        kind=job.aggregation.kind,
        bits=job.aggregation.bits,
        bound=update_bound(job),
        colluding=colluding_members(secagg, members) if isinstance(secagg, SecAgg) else None,
        least=bounds.least if isinstance(secagg, SecAgg) else None,
    )


def _cache(settings: Settings, folder: Path) -> Path | None:
    if not settings.speed.cache_frozen:
        return None
    return Path(settings.speed.cache_folder or folder / "cache")
