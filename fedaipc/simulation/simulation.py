"""Many PCs on one machine: lay out their folders, run a job on them, complete the results.

The simulator plays every owner, so it alone knows what each PC holds. The coordinator and the PCs
are the same code as over real PCs, and see no more of each other than they would there.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from filelock import FileLock, Timeout

from fedaipc import strict_json
from fedaipc.client.client_app import app as client_app
from fedaipc.client.client_app import pc_folder
from fedaipc.client.key_store import KeyStore
from fedaipc.client.trainer import freeze_for_all
from fedaipc.config import for_labels, load_settings
from fedaipc.coordinator import server_app
from fedaipc.data.prepare import prepare_simulation
from fedaipc.errors import (
    BudgetExhausted,
    EngineError,
    OutputError,
    RoundError,
    SecAggError,
    os_errors_as,
)
from fedaipc.extras import need
from fedaipc.federation.key import Admission
from fedaipc.files import expanded, write_text
from fedaipc.machine import cpus
from fedaipc.model.base import weights_bytes, with_whole_base
from fedaipc.model.classifier import Classifier
from fedaipc.model.device import choose_device
from fedaipc.model.warm_up import check_model, warm_base
from fedaipc.privacy.budget import best_filter
from fedaipc.privacy.ledger import Ledger
from fedaipc.protocol.job import Job, SignedJob, job_schedule, make_job
from fedaipc.protocol.job_folder import CONFIG_FILE, JOB_FILE, write_job
from fedaipc.protocol.round_terms import check_noise, check_secagg
from fedaipc.results import LOCK_FILE, RESULTS_FILE, Engine, Results, RoundResult
from fedaipc.secagg.roster import ROSTER_FILE, read_roster
from fedaipc.simulation import flower_engine
from fedaipc.simulation.flower_adapter import InProcessGrid, run_server_app
from fedaipc.simulation.simulated_pc import join_run, owner_settings, pc_result, prepare_pc
from fedaipc.simulation.workers import WorkerGrid, room_for, workers_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from flwr.app import Context, Message

    from fedaipc.config import Settings

_PLACE_FILE = "pc-state.json"
_log = logging.getLogger(__name__)
_FEDERATION_FOLDER = "federation"  # beside the PCs
_JOINED_FILE = "joined-run.json"  # beside the PCs: the run whose records they hold


@dataclass(frozen=True, slots=True)
class Run:
    """A prepared run: its folder, where its PCs live, and how many rounds all can afford."""

    folder: Path
    pc_state: Path
    settings: Settings
    covered_rounds: int


def prepare(
    settings: Settings,
    *,
    pc_state: Path | None = None,
    test_seed: int | None = None,
    on_warm_up: Callable[[int, int], None] = lambda *_: None,
) -> Run:
    """Warm up the base where the settings say so, make the run folder and enroll the PCs.

    PCs live in the run folder, or in `pc_state`, where a PC that is there already keeps its size
    class and its ledger with all it has spent. `test_seed` makes every PC's randomness repeatable
    and the result NOT PRIVATE. `on_warm_up` gets the step and the number of steps.

    Raises ConfigError, DataError, AssetError, ModelError, LedgerError, RoundError, OutputError,
    or PrivacyError: an existing PC has another delta or budget in its ledger, or a smaller size
    class, or all budgets are spent. Then no run folder is left behind, and the PCs hold what
    they held.
    """
    settings = _with_whole_paths(settings)
    data = prepare_simulation(settings.data, settings.federation.clients)
    settings = for_labels(settings, data.labels)
    check_secagg(settings)
    before = check_model(settings, data)
    settings, public = warm_base(settings, data, on_warm_up)
    classifier = before if public is None else Classifier(settings.model, data.labels)
    once = job_schedule(settings)
    kind = best_filter(once, settings.rounds, settings.federation.lifetime_epsilon)
    folder = _new_folder(Path(settings.output.folder), settings.output.name)
    try:
        state = _pc_state(pc_state or folder / "pcs")
        # Relative where the PCs lie within: then the whole folder can be moved.
        write_text(folder / _PLACE_FILE, json.dumps("pcs" if pc_state is None else str(state)))
        with _locked(state):
            admission = Admission(state / _FEDERATION_FOLDER)
            parts = [data.train.take(indices) for indices in data.parts]
            owners = [
                owner_settings(
                    pc_folder(state, number), len(records), settings, admission, test_seed
                )
                for number, records in enumerate(parts)
            ]
            ledgers = [
                prepare_pc(state / owner.name, owner, records, settings, kind)
                for owner, records in zip(owners, parts, strict=True)
            ]
            identities = [KeyStore.create(state / owner.name).identity.public for owner in owners]
            roster = admission.roster(identities)
            (folder / ROSTER_FILE).write_bytes(roster)
            job = make_job(
                settings,
                data.labels,
                classifier.layout.hash,
                secrets.token_hex(8),
                [owner.size_class for owner in owners],
                read_roster(roster)[1].version,
            )
            check_noise(job, classifier.layout.size)
            write_job(
                folder,
                SignedJob.sign(admission.key, job),
                settings,
                data,
                train=data.train,
                classifier=classifier,
                model_notes=before.notes,
                warm_up=public,
                not_private=_not_private(settings, test_seed, ledgers),
            )
            covered = _covered_rounds(job, ledgers, state)
            # A crash before the last PC has joined leaves them in no run: some would train the
            # old one on the records of the new one, or the other way round.
            write_text(state / _JOINED_FILE, json.dumps(None))
            for owner in owners:
                join_run(state / owner.name)
            write_text(state / _JOINED_FILE, json.dumps(job.run))
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise OutputError(
            f"{folder}: cannot be written ({error.strerror}); choose another --out or free space"
        ) from None
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Run(folder, state, settings, covered)


def _with_whole_paths(settings: Settings) -> Settings:
    """Paths that hold from any folder: engines and later commands may run in another one."""
    model, speed = with_whole_base(settings.model), settings.speed
    if speed.cache_folder is not None:
        whole = str(expanded(speed.cache_folder).resolve())
        speed = speed.model_copy(update={"cache_folder": whole})
    return settings.model_copy(update={"model": model, "speed": speed})


def reopen(folder: Path) -> Run:
    """A run that was cut off. Raises OutputError or RoundError where nothing can be resumed."""
    if not (folder / JOB_FILE).is_file():
        raise OutputError(f"{folder}: not a run folder; give the one that the run wrote")
    if _status(folder) == "finished":
        raise RoundError(f"{folder}: this run is finished; there is nothing to resume")
    state = folder.resolve() / strict_json.load(folder / _PLACE_FILE)
    if not state.is_dir():
        raise OutputError(f"{state}: the folder with the state of the PCs was not found")
    settings = load_settings(folder / CONFIG_FILE)
    run = Run(folder, state, settings, settings.rounds)
    _check_joined(run)
    return run


def simulate(
    run: Run,
    engine: Engine,
    on_round: Callable[[RoundResult], None],
    app: Callable[[Message, Context], Message] = client_app,
) -> Results:
    """Run the job to its end and complete results.json with what only a simulator knows.

    `app` answers for the PCs in this process; another one may listen to what passes.

    Raises BudgetExhausted, RoundError, EngineError or OutputError; results so far and the
    checkpoint are kept, and `simulate(reopen(folder), ...)` goes on.
    """
    with _locked(run.folder), _locked(run.pc_state):
        _check_joined(run)
        try:
            if engine == "in-process":
                _run_in_process(run, on_round, app)
            else:
                _run_on_flower(run, on_round)
        finally:
            folders = [pc_folder(run.pc_state, n) for n in range(run.settings.federation.clients)]
            for folder in folders:
                with suppress(SecAggError):
                    KeyStore(folder).forget_keys()
            if (run.folder / RESULTS_FILE).is_file():
                results = _completed(run)
                results.write(run.folder)
        for folder in (run.folder, *folders):
            shutil.rmtree(folder / "cache", ignore_errors=True)
    if not run.settings.output.keep_pc_state:
        shutil.rmtree(run.folder / "pcs", ignore_errors=True)
    return results


def check_engine(engine: Engine, pc_state: Path | None) -> None:
    """Raise EngineError where the engine cannot work with PCs in `pc_state`, None for the run's.

    Raises MissingExtra where Ray is not installed.
    """
    if engine == "flower":
        need("the engine flower", "ray")
    if engine == "flower" and flower_engine.uses_cluster() and pc_state is None:
        raise EngineError(
            "RAY_ADDRESS is set: the PCs' state must lie in a folder that all machines of the "
            "cluster share; give it with --pc-state"
        )


def _job(run: Run) -> Job:
    return Job.parse((run.folder / JOB_FILE).read_text(encoding="utf-8"))


def _check_joined(run: Run) -> None:
    """Raise RoundError where the PCs got the records of another run since."""
    try:
        joined = strict_json.load(run.pc_state / _JOINED_FILE)
    except (OSError, ValueError):
        joined = None
    if joined != _job(run).run:
        raise RoundError(
            f"{run.pc_state}: these PCs have joined another run since and hold its records; start "
            "a new run"
        )


def _run_in_process(
    run: Run,
    on_round: Callable[[RoundResult], None],
    app: Callable[[Message, Context], Message],
) -> None:
    config = {"pc-state": str(run.pc_state)}
    started = time.monotonic()
    with _grid(run, app, config) as (grid, workers):
        prepared = time.monotonic() - started
        made = server_app.make_server_app(run.folder, on_round, workers, prepared)
        run_server_app(made, grid, config)


@contextmanager
def _grid(
    run: Run, app: Callable[[Message, Context], Message], config: dict[str, str]
) -> Iterator[tuple[InProcessGrid, int]]:
    """The PCs, ready to be asked, and how many processes play them.

    The frozen layers have seen their texts. Raises EngineError.
    """
    pcs, speed = run.settings.federation.clients, run.settings.speed
    workers, threads = _workers(run)
    if workers > 1 and app is client_app:  # another one listens here
        with ExitStack() as stack:
            try:
                started = WorkerGrid.started(workers, run.folder, run.pc_state, pcs, threads)
                grid = stack.enter_context(started)
            except EngineError as error:  # a kind, say, that only this process knows
                if speed.workers:
                    raise
                _log.warning("one process plays all PCs: %s", error)
            else:
                yield grid, workers
                return
    freeze_for_all([pc_folder(run.pc_state, number) for number in range(pcs)], _job(run))
    yield InProcessGrid(app, [{}] * pcs, config), 1


def _workers(run: Run) -> tuple[int, int]:
    """How many processes play PCs, and the threads of each."""
    speed, pcs = run.settings.speed, run.settings.federation.clients
    on_cpu = choose_device(speed).torch.type == "cpu"
    if not (on_cpu or speed.workers):
        return 1, 1
    # As many as the environment leaves to torch: OMP_NUM_THREADS, say.
    computing = cpus() if speed.threads else torch.get_num_threads()
    count = workers_for(speed, pcs, computing, weights_bytes(run.settings.model.base))
    return count, speed.threads or max(1, computing // count)


def _run_on_flower(run: Run, on_round: Callable[[RoundResult], None]) -> None:
    within = run.pc_state.is_relative_to(run.folder.resolve())
    check_engine("flower", None if within else run.pc_state)

    def on_log(line: str) -> None:
        _, found, event = line.partition(server_app.EVENT)
        if found:
            with suppress(ValueError):  # a line that another process broke into
                on_round(RoundResult.from_json(event.strip()))

    starts, pcs = _starts(run.folder), run.settings.federation.clients
    threads = run.settings.speed.threads or 1
    exported = os.environ.get("OMP_NUM_THREADS", "")  # which Ray leaves as it is
    of_a_pc = int(exported) if exported.isdecimal() and int(exported) else 1
    started = time.monotonic()
    _freeze_here(run, run.settings.speed.threads or of_a_pc)
    try:
        flower_engine.run_on_flower_simulation(
            run_config={
                "run-folder": str(run.folder.resolve()),
                "pc-state": str(run.pc_state),
                "prepared-seconds": f"{time.monotonic() - started:.3f}",
            },
            num_pcs=pcs,
            cpus_per_pc=threads,
            on_log=on_log,
        )
    except EngineError:
        # The app's own error stayed in another process; the results say whether it was this one.
        if _status(run.folder) == "stopped" and _starts(run.folder) > starts:
            raise BudgetExhausted(
                "too few PCs can afford another round: the lifetime budgets of the others "
                "(federation.lifetime_epsilon) are spent; the last checkpoint stands"
            ) from None
        raise


def _freeze_here(run: Run, threads: int) -> None:
    """Put all texts through the frozen layers, as PCs with so many threads will look for them.

    Where that fails each PC does it by itself, and on a cluster too, which has more cores.
    """
    settings, pcs = run.settings, run.settings.federation.clients
    speed, layers = settings.speed, settings.model.keep_layers or 1000
    on_cpu = choose_device(speed).torch.type == "cpu" and not flower_engine.uses_cluster()
    if not (on_cpu and speed.cache_frozen and settings.model.train.frozen_layers(layers)):
        return
    room = room_for(weights_bytes(settings.model.base))
    count = max(1, min(cpus() // threads, pcs, room))  # all cores, as the engine's own PCs
    with (
        suppress(EngineError),
        WorkerGrid.started(count, run.folder, run.pc_state, pcs, threads),
    ):
        pass


def _covered_rounds(job: Job, ledgers: Sequence[Ledger], state: Path) -> int:
    """How many rounds every PC can afford. Raises BudgetExhausted where no PC affords one."""
    once = job.schedule
    if not once.private:
        return job.rounds
    if not any(ledger.covers(once) for ledger in ledgers):
        ledgers[0].check_counted(once)
        raise BudgetExhausted(
            f"{state}: no PC can afford a round at this noise, their lifetime budgets are spent; "
            "use a new --pc-state, or ask for more noise"
        )
    return min(ledger.rounds_left(once) for ledger in ledgers)


def _completed(run: Run) -> Results:
    """results.json with what each PC holds and has spent, read from its own folder."""
    once = _job(run).schedule
    folders = [pc_folder(run.pc_state, number) for number in range(run.settings.federation.clients)]
    pcs = [pc_result(folder, once) for folder in folders]
    return Results.load(run.folder).model_copy(update={"pcs": tuple(pcs)})


def _pc_state(folder: Path) -> Path:
    with os_errors_as(OutputError, f"{folder}: cannot be made", "; choose another --pc-state"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def _status(folder: Path) -> str | None:
    return Results.load(folder).status if (folder / RESULTS_FILE).is_file() else None


def _starts(folder: Path) -> int:
    """How often the job in `folder` was begun."""
    return Results.load(folder).resumed + 1 if (folder / RESULTS_FILE).is_file() else 0


def _not_private(settings: Settings, test_seed: int | None, ledgers: Sequence[Ledger]) -> list[str]:
    reasons = []
    if any(ledger.unprotected for ledger in ledgers):
        reasons.append("PCs that took part in rounds without privacy, or with a test seed, before")
    if settings.privacy.kind == "none":
        reasons.append('privacy.kind = "none": neither clip nor noise')
    if test_seed is not None:
        reasons.append("insecure test seed: whoever knows it can remove the noise")
    return reasons


def _new_folder(parent: Path, name: str) -> Path:
    """parent/name, or parent/name-2 and so on where that is taken."""
    for number in range(1, 100_000):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise OutputError(
                f"{folder}: cannot be made ({error.strerror}); choose another --out"
            ) from None
        return folder
    raise OutputError(f"{parent}: too many runs named {name}; choose another --name")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        with FileLock(folder / LOCK_FILE, timeout=0):
            yield
    except Timeout:
        raise RoundError(f"{folder}: another process is running this job") from None
    except PermissionError:
        raise OutputError(f"{folder}: cannot be written; choose another --out") from None
