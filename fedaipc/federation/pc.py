"""A PC's side of the federation: check what is asked, charge the ledger, train.

A `Pc` is a folder that belongs to the owner: `owner.toml`, `ledger.jsonl`, `pc.log`, a cache.
Its methods return what may leave the PC, or raise; nothing of its data is in an exception's text.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedaipc.config import load_owner
from fedaipc.data.sources import read_records
from fedaipc.errors import PrivacyError, RoundError
from fedaipc.model.classifier import Classifier
from fedaipc.model.device import choose_device
from fedaipc.model.inputs import Inputs, longest_input, make_inputs
from fedaipc.privacy.ledger import Charge, Ledger
from fedaipc.privacy.plan import check_delta
from fedaipc.privacy.randomness import SecureRandom
from fedaipc.privacy.training import rehearse, train_round

if TYPE_CHECKING:
    import numpy.typing as npt

    from fedaipc.config import ModelSettings, OwnerSettings, SpeedSettings
    from fedaipc.federation.job import Job
    from fedaipc.federation.messages import TrainRequest

OWNER_FILE = "owner.toml"
LEDGER_FILE = "ledger.jsonl"
LOG_FILE = "pc.log"


class SimulatedDropOut(Exception):  # noqa: N818 - an event that a test asked for, not a fault
    """The PC vanishes here: whoever drives it must not let a reply leave."""


class Pc:
    """One PC, opened from its folder. Raises ConfigError or LedgerError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.owner = load_owner(folder / OWNER_FILE)

    def open_ledger(self) -> Ledger:
        return Ledger(self.folder / LEDGER_FILE)

    def admit(self, request: TrainRequest) -> Classifier:
        """Check what is asked, then charge the ledger; the model to `train` with.

        Looks at no data, so what is raised may be told. Raises PrivacyError or RoundError where
        the owner's rules or the ledger refuse, BudgetExhausted where the budget is spent.
        """
        owner, job = self.owner, request.job
        # 1. Check the job against the owner's rules, on public facts alone.
        ledger = self.open_ledger()
        self._check(request, ledger)
        # The base is the owner's; that both sides have the same one is in the layout's hash.
        model = job.model.model_copy(update={"base": owner.base})
        classifier = shared_classifier(model, job.labels, owner)
        if classifier.layout.hash != job.layout_hash:
            raise RoundError("the coordinator trains another base model or another part of it")
        size, vector = classifier.layout.size, request.vector
        if vector.shape != (size,) or not np.isfinite(vector).all():
            raise RoundError("the global vector does not fit the model or is not finite")
        # 2. Charge the ledger; when this returns the charge is on the disk.
        plan = job.plan
        if plan.private:
            self._rehearse(request, classifier)
        ledger.charge(
            Charge(
                run=job.run,
                round=request.round,
                attempt=request.attempt,
                mechanism=plan.mechanism() if plan.private else None,
                clip=job.clip,
                seeded=owner.insecure_test_seed is not None,
            )
        )
        return classifier

    def _rehearse(self, request: TrainRequest, classifier: Classifier) -> None:
        """Once per process and model. Raises RoundError where this machine cannot do the job."""
        job, speed = request.job, self.owner.speed
        key = (classifier.layout.hash, job.model.max_length, speed)
        if key in _rehearsed:
            return
        try:
            rehearse(
                classifier,
                longest_input(classifier, cached=speed.cache_frozen),
                request.vector,
                plan=job.plan,
                training=job.training,
                micro_batch=speed.micro_batch,
            )
        except (RuntimeError, MemoryError) as error:
            self._note(f"round {request.round}: refused: {_shown(error)}")
            raise RoundError(
                "this PC cannot train one batch of this job; give it more memory, or set a "
                "smaller speed.micro_batch in its owner.toml"
            ) from None
        _rehearsed.add(key)

    def train(self, request: TrainRequest, classifier: Classifier) -> npt.NDArray[np.float32]:
        """Only after `admit`: the update of shape (layout.size,), all that leaves.

        To fail or not to fail would be an answer without noise. So where the data or the training
        on it fails in a private mode, the update is that of a PC without data: noise alone, and
        the reason stays in the PC's own log.
        """
        if self._vanishes(request.attempt):
            raise SimulatedDropOut
        # 3. Train with randomness that only this PC knows.
        try:
            return self._trained(request, classifier, *self._examples(classifier, request.job))
        except Exception as error:
            if not request.job.plan.private:
                raise
            self._note(f"round {request.round}: trained on nothing: {_shown(error)}")
        return self._trained(request, classifier, Inputs.nothing(), np.zeros(0, dtype=np.int64))

    def _trained(
        self,
        request: TrainRequest,
        classifier: Classifier,
        examples: Inputs,
        targets: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.float32]:
        return train_round(
            classifier,
            examples,
            targets,
            request.vector,
            plan=request.job.plan,
            training=request.job.training,
            size_class=self.owner.size_class,
            micro_batch=self.owner.speed.micro_batch,
            random=self._random(request.round),
        )

    def _note(self, line: str) -> None:
        """One line for the owner's eyes: it may tell of data, and so never leaves the folder."""
        path = self.folder / LOG_FILE
        with suppress(OSError):
            path.touch(mode=0o600)
            with path.open("a", encoding="utf-8", errors="replace") as file:
                file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {line}\n")

    def _check(self, request: TrainRequest, ledger: Ledger) -> None:
        job = request.job
        if job.plan.private:
            check_delta(ledger.delta, self.owner.size_class)
            if job.delta != ledger.delta:
                raise PrivacyError(
                    f"the job promises at delta {job.delta:g}; this PC's ledger counts at "
                    f"{ledger.delta:g} for good"
                )
        elif not self.owner.allow_not_private:
            raise PrivacyError("the job asks for training without privacy; the owner forbids it")
        if request.round > job.rounds or request.attempt > job.most_attempts:
            raise RoundError("the coordinator asks for more rounds than its job states")

    def _examples(self, classifier: Classifier, job: Job) -> tuple[Inputs, npt.NDArray[np.int64]]:
        """The PC's texts as model inputs and their class numbers, read once per process."""
        owner = self.owner
        source = str(self.folder / owner.source) if owner.source.startswith("./") else owner.source
        key = (str(self.folder.resolve()), classifier.layout.hash, _stamp(source))
        if key in _examples:
            _examples.move_to_end(key)
            return _examples[key]
        # A record that cannot be read is left out too: it must not cost the others.
        records = read_records(
            source,
            text_column=owner.text_column,
            label_column=owner.label_column,
            group_column=None,
            skip_unusable=True,
        )
        number = {label: i for i, label in enumerate(job.labels)}
        # A record whose label the job does not list is left out. To fail instead would tell a
        # coordinator that lies about labels, and without any noise, whether the PC holds one.
        records = records.take(i for i, label in enumerate(records.labels) if label in number)
        targets = np.array([number[label] for label in records.labels], dtype=np.int64)
        cache = self.folder / "cache"
        if owner.speed.cache_folder is not None:
            cache = Path(owner.speed.cache_folder)
        if len(records):
            frozen = cache if owner.speed.cache_frozen else None
            inputs = make_inputs(classifier, records.texts, frozen)
        else:  # noise alone, as in any round whose sample is empty
            inputs = Inputs.nothing()
        _examples[key] = inputs, targets
        if len(_examples) > _EXAMPLES_KEPT:
            _examples.popitem(last=False)
        return _examples[key]

    def _random(self, number: int) -> SecureRandom:
        seed = self.owner.insecure_test_seed
        if seed is None:
            return SecureRandom()
        # By round, not by attempt: so a resumed run can be compared with an unbroken one.
        return SecureRandom.for_test(seed, self.owner.name, number)

    def _vanishes(self, attempt: int) -> bool:
        owner = self.owner
        text = f"{owner.drop_out_seed} {owner.name} {attempt}"
        draw = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
        return draw < owner.drop_out


_EXAMPLES_KEPT = 256  # PCs of one process; mostly file-backed, so this is a bound on open files
_rehearsed: set[tuple[str, int, SpeedSettings]] = set()
_Key = tuple[str, str, tuple[tuple[str, int, int], ...]]
_examples: OrderedDict[_Key, tuple[Inputs, npt.NDArray[np.int64]]] = OrderedDict()


def _stamp(source: str) -> tuple[tuple[str, int, int], ...]:
    """What shows that a file, or one in a folder, was replaced since it was read."""
    path = Path(source).expanduser()
    found = []
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        with suppress(OSError):  # gone, or a link to nowhere
            state = file.stat()
            found.append((str(file), state.st_mtime_ns, state.st_size))
    return tuple(found)


def _shown(error: Exception) -> str:
    try:
        return f"{type(error).__name__}: {error}".replace("\n", " ")[:500]
    except Exception:  # noqa: BLE001 - an exception that cannot be printed must not stop a round
        return type(error).__name__


def shared_classifier(
    model: ModelSettings, labels: tuple[str, ...], owner: OwnerSettings
) -> Classifier:
    """One copy of the model for all simulated PCs of this process; a round sets all it trains."""
    device = choose_device(owner.speed)
    classifier = _classifier(model, labels)
    classifier.to_device(device.torch)
    return classifier


@lru_cache(maxsize=2)
def _classifier(model: ModelSettings, labels: tuple[str, ...]) -> Classifier:
    return Classifier(model, labels)
