"""A PC's training in a round: check what is asked, charge the ledger, train, seal.

`Trainer.ready` and `Trainer.admit` look at no data, so what they raise may be sent. What `train`
returns is all that leaves.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from fedaipc.client import examples
from fedaipc.client.client import LOG_FILE, Client
from fedaipc.client.policy import check_policy
from fedaipc.config import DPSGD
from fedaipc.data.sources import read_records
from fedaipc.errors import BudgetExhausted, FedaipcError, ModelError, RoundError, check_clock
from fedaipc.model.classifier import Classifier, read_vector
from fedaipc.model.device import choose_device
from fedaipc.model.inputs import Inputs, freeze_together, longest_input
from fedaipc.privacy.budget import check_delta, outgrown
from fedaipc.privacy.ledger import LEDGER_FILE, Charge, Ledger
from fedaipc.privacy.randomness import SecureRandom
from fedaipc.privacy.training import clipped_sum, clipped_update, rehearse, train_round
from fedaipc.protocol.job import SignedJob
from fedaipc.protocol.noise_share import NoiseShare, noise_share
from fedaipc.protocol.round_terms import hash_vector, make_terms
from fedaipc.secagg.round_keys import Group, share_secrets
from fedaipc.secagg.terms import Terms
from fedaipc.secagg.uploads import LedgerHead, mask_update

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy.typing as npt

    from fedaipc.config import OwnerSettings, Schedule, SpeedSettings, TextClassifier
    from fedaipc.data.reading import Reading
    from fedaipc.protocol.job import Job
    from fedaipc.protocol.messages import RoundRequest
    from fedaipc.secagg.roster import Roster
    from fedaipc.secagg.round_keys import Keys, RoundSecrets


_log = logging.getLogger(__name__)


class Masking(NamedTuple):
    """What it takes to mask this PC's update."""

    group: Group
    keys: Keys
    own: RoundSecrets


@dataclass(frozen=True, slots=True)
class Checked:
    """A round that this PC would take part in. `keys` are None where updates travel unsealed,
    `share` where noise is added in each step, or none is.
    """

    job: Job
    terms: Terms
    ledger: Ledger
    keys: Keys | None
    classifier: Classifier
    share: NoiseShare | None

    @property
    def charge(self) -> Schedule:
        """What the round costs."""
        return self.job.schedule


@dataclass(frozen=True, slots=True)
class Admitted(Checked):
    """A round that was charged. `head` is the ledger's since then.

    `masking` is None where updates travel plain.
    """

    head: LedgerHead
    masking: Masking | None
    vector: npt.NDArray[np.float32]


class Trainer:
    """The training of one PC in one round.

    `charged` is how many attempts of the job's run are in the ledger, None until that was read.
    """

    def __init__(self, pc: Client, request: RoundRequest) -> None:
        self.charged: int | None = None
        self._pc = pc
        self._request = request

    def check(self) -> Checked:
        """Check what is asked on public facts alone. Nothing is charged, and no data is read.

        Raises PrivacyError, SecAggError or RoundError where the owner's rules, the round's or
        the ledger refuse, ModelError where the owner's base cannot be used.
        """
        pc, request = self._pc, self._request
        owner = pc.owner
        admission = bytes.fromhex(owner.admission)
        signed = SignedJob.read(request.job, request.signature, admission)
        job, ledger = signed.job, Ledger(pc.folder / LEDGER_FILE, pc.key_store.identity)
        self.charged = ledger.attempts(job.run)
        seen = pc.key_store.heads().get(pc.key_store.identity.public)
        if seen is not None:
            ledger.check_head(seen.count, seen.digest)
        pc.key_store.expire()
        roster = pc.key_store.roster(admission)
        terms = self._terms(signed, roster)
        check_policy(owner.policy, job, terms, ledger, pc.key_store.identity.public)
        if job.privacy.private:
            check_delta(
                ledger.delta,
                ledger.unit,
                public_class=owner.size_class,
                clients=len(roster.members),
            )
        ledger.check_new(job.run, terms.number)
        keys = pc.key_store.keys(terms) if terms.sealed else None
        if keys is not None:
            pc.key_store.check_new(terms)
            keys.check(terms.bundles)
        # The base is the owner's; that both sides have the same one is in the layout's hash.
        model = job.model.model_copy(update={"base": owner.base})
        classifier = shared_classifier(model, job.labels, owner)
        if classifier.layout.hash != job.layout_hash or terms.size != classifier.layout.size:
            raise RoundError(
                f"the coordinator trains another base model or another part of it than this PC's "
                f"{owner.base}; `base` in owner.toml says which this PC takes"
            )
        if isinstance(job.privacy, DPSGD):
            _rehearse(pc, job, job.privacy, classifier)
        return Checked(job, terms, ledger, keys, classifier, self._share(job, terms))

    def ready(self) -> bytes:
        """What the PC shares out before the round, as a frame; empty where updates travel plain.

        Raises as `check`, and BudgetExhausted where the lifetime budget does not cover it.
        """
        checked = self.check()
        if checked.charge.private:
            checked.ledger.check_counted(checked.charge)
        if checked.charge.private and not checked.ledger.covers(checked.charge):
            raise BudgetExhausted("the lifetime budget does not cover another round")
        if checked.keys is None:
            return b""
        own, shared = share_secrets(checked.terms, checked.keys)
        self._pc.key_store.keep_secrets(own)
        return shared.encode()

    def admit(self, round_keys: bytes, vector: npt.NDArray[np.float32]) -> Admitted:
        """Check the round again, then charge the ledger; `vector` is the global one.

        `round_keys` is the frame of those of the group. Raises as `ready`, and SecAggError where
        this PC's round key is not among them.
        """
        pc, request = self._pc, self._request
        checked = self.check()
        job, terms, ledger = checked.job, checked.terms, checked.ledger
        if hash_vector(vector) != terms.vector_hash or len(vector) != terms.size:
            raise RoundError("the coordinator sent a different global vector than its terms name")
        if not np.isfinite(vector).all():
            raise RoundError("the global vector is not finite")
        masking = None
        if checked.keys is not None:
            with pc.key_store.alone():
                group, own = Group.of(terms, round_keys), pc.key_store.secrets()
                group.check(own)
                # From here on this PC is a member of its group, whether or not its budget covers
                # the round. Its secrets are in memory alone: no second upload can have them.
                pc.key_store.keep(group)
                pc.key_store.forget_secrets()
            masking = Masking(group, checked.keys, own)
        # Charge the ledger; when this returns the charge is on the disk.
        ledger.charge(
            Charge(
                run=job.run,
                round=request.round,
                attempt=terms.number,
                schedule=checked.charge,
                seeded=pc.owner.insecure_test_seed is not None,
            )
        )
        head = LedgerHead(*ledger.head)
        pc.key_store.note_head(head)
        return Admitted(
            job, terms, ledger, checked.keys, checked.classifier, checked.share, head, masking,
            vector,
        )  # fmt: skip

    def train(self, admitted: Admitted) -> bytes:
        """The masked update as a frame, or the encoded one where the round is plain.

        To fail or not to fail would be an answer without noise. So where the data or the training
        on it fails in a private mode, the update is that of a PC without data: noise alone, and
        the reason stays in the PC's own log.
        """
        self._pc.vanish("mask", admitted.terms.number)
        words = self._words(admitted)
        if admitted.masking is None:
            return bytes(admitted.terms.encoding.pack(words))
        return mask_update(*admitted.masking, words, admitted.head).encode()

    def _words(self, admitted: Admitted) -> npt.NDArray[Any]:
        try:
            known = (self._pc, admitted.classifier, admitted.job.labels)
            return self._trained(admitted, *examples.load(*known, self._remark))
        except Exception as error:
            if not admitted.job.privacy.private:
                raise
            self._pc.note(f"round {self._request.round}: trained on nothing: {_shown(error)}")
            if self._pc.owner.server is not None:  # in a simulation the log is the coordinator's
                _log.warning("trained on nothing: %s says why", self._pc.folder / LOG_FILE)
        return self._trained(admitted, Inputs.nothing(), np.zeros(0, dtype=np.int64))

    def _trained(
        self, admitted: Admitted, examples: Inputs, targets: npt.NDArray[np.int64]
    ) -> npt.NDArray[Any]:
        """The encoded update."""
        owner, terms = self._pc.owner, admitted.terms
        mechanism, share = admitted.job.privacy, admitted.share
        if share is not None and isinstance(mechanism, DPSGD):
            random = self._random("training")
            known = (admitted.classifier, examples, targets, admitted.vector)
            how: dict[str, Any] = {
                "mechanism": mechanism, "clip_norm": share.clip_norm, "random": random,
                "micro_batch": owner.speed.micro_batch,
            }  # fmt: skip
            if mechanism.unit == "client":
                total = clipped_update(*known, training=admitted.job.training, **how)
            else:
                total = clipped_sum(*known, size_class=owner.size_class, **how)
            return share.encode(total, random)
        update = train_round(
            admitted.classifier,
            examples,
            targets,
            admitted.vector,
            schedule=admitted.job.schedule,
            training=admitted.job.training,
            size_class=owner.size_class,
            micro_batch=owner.speed.micro_batch,
            random=self._random("training"),
        )
        weight = terms.weights[terms.place(self._pc.key_store.identity.public)]
        return terms.encoding.encode(update, weight, self._random("rounding").key())

    def _random(self, purpose: str) -> SecureRandom:
        seed = self._pc.owner.insecure_test_seed
        if seed is None:
            return SecureRandom()
        # By round, not by attempt: so a resumed run can be compared with an unbroken one.
        return SecureRandom.for_test(seed, self._pc.owner.name, self._request.round, purpose)

    def _terms(self, signed: SignedJob, roster: Roster) -> Terms:
        """Those of this PC's group, which must be what the coordinator states."""
        request, job = self._request, signed.job
        stated = Terms.decode(request.terms)
        own = self._pc.key_store.identity.public
        if job.not_after < time.time():
            raise RoundError(f"the job is out of date: have it signed again, or {check_clock()}")
        if roster.version < job.min_roster:
            raise RoundError(
                "the list of members is older than the job: it still holds PCs that were revoked"
            )
        if request.round > job.rounds or stated.number > job.max_attempts:
            raise RoundError("the coordinator asks for more rounds than its job states")
        groups = roster.groups(stated.number, job.cohort)
        group = next((group for group in groups if own in group), None)
        if group is None:
            raise RoundError("the public draw did not choose this PC for the round")
        # Whether the vector is the one that is named here is seen when it comes (`admit`).
        terms = make_terms(
            signed, roster, stated.number, group, stated.bundles, stated.vector_hash, stated.size
        )
        if terms != stated:
            raise RoundError("the coordinator's terms differ from its job's")
        stated.check(roster, group, time.time())
        stated.place(own)
        return stated

    def _share(self, job: Job, terms: Terms) -> NoiseShare | None:
        mechanism = job.privacy
        if not isinstance(mechanism, DPSGD) or not mechanism.noise_at_encoding:
            return None
        return noise_share(mechanism, terms, self._pc.key_store.identity.public)

    def _remark(self, reading: Reading) -> None:
        """Tell the owner which texts are not used; the numbers go to the PC's own log only."""
        pc, size_class = self._pc, self._pc.owner.size_class
        if reading.dropped:
            pc.note(f"left out: {reading.where}: {reading.left_out_text()}")
        count = len(reading.records)
        advice = outgrown(count, size_class)
        if advice:
            pc.note(f"{count:,} records, size class {size_class:,}: {advice}")
            if pc.owner.server is not None:  # in a simulation the log is the coordinator's
                _log.warning("%s; %s has the numbers", advice, pc.folder / LOG_FILE)


_rehearsed: dict[tuple[str, int, str, int, SpeedSettings], int] = {}  # and how it multiplies


def _rehearse(pc: Client, job: Job, mechanism: DPSGD, classifier: Classifier) -> None:
    """Once per process and model. Raises RoundError where this machine cannot do the job."""
    speed = pc.owner.speed
    threads = torch.get_num_threads()  # which decides where a matrix product is cut
    kind = f"{mechanism.kind} {mechanism.unit}"
    key = (classifier.layout.hash, job.model.max_length, kind, threads, speed)
    if key in _rehearsed:
        classifier.by_record = _rehearsed[key]
        return
    try:
        rehearse(
            classifier,
            longest_input(classifier, cached=speed.cache_frozen),
            read_vector(classifier),
            mechanism=mechanism,
            training=job.training,
            micro_batch=speed.micro_batch,
        )
    except ModelError as error:
        raise RoundError(str(error)) from None
    except (RuntimeError, MemoryError) as error:
        pc.note(f"run {job.run}: refused: {_shown(error)}")
        raise RoundError(
            "this PC cannot train one batch of this job; give it more memory, or set a "
            "smaller speed.micro_batch in its owner.toml"
        ) from None
    _rehearsed[key] = classifier.by_record


def freeze_for_all(folders: Iterable[Path], job: Job) -> None:
    """Run the texts of all simulated PCs through the frozen layers, as each would by itself.

    Where that fails each PC does it by itself, and says in its own log what is wrong.
    """
    pcs = [Client(folder) for folder in folders]
    owner = pcs[0].owner
    classifier = shared_classifier(
        job.model.model_copy(update={"base": owner.base}), job.labels, owner
    )
    if isinstance(job.privacy, DPSGD):
        with suppress(RoundError):  # each PC says so when it is asked
            _rehearse(pcs[0], job, job.privacy, classifier)

    def parts() -> Iterator[tuple[Sequence[str], Path]]:
        for pc in pcs:
            cache = examples.cache_folder(pc)
            with suppress(FedaipcError):
                if cache is not None:
                    reading = read_records(pc.source, pc.owner, labels=job.labels)
                    yield reading.records.texts, cache

    try:
        freeze_together(classifier, parts())
    except Exception as error:  # noqa: BLE001 - one PC's data must not end the run of all
        _log.warning("texts are not frozen together (%s)", type(error).__name__)


def _shown(error: Exception) -> str:
    try:
        return f"{type(error).__name__}: {error}".replace("\n", " ")[:500]
    except Exception:  # noqa: BLE001 - an exception that cannot be printed must not stop a round
        return type(error).__name__


def shared_classifier(
    model: TextClassifier, labels: tuple[str, ...], owner: OwnerSettings
) -> Classifier:
    """One copy of the model for all simulated PCs of this process; a round sets all it trains."""
    device = choose_device(owner.speed)
    classifier = _classifier(model, labels)
    classifier.use(device)
    return classifier


@lru_cache(maxsize=2)
def _classifier(model: TextClassifier, labels: tuple[str, ...]) -> Classifier:
    return Classifier(model, labels)
