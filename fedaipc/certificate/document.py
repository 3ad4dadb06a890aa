"""What a certificate says, and the bytes that are signed.

A certificate of a **run** bounds what the run cost any PC that took part in each of its attempts;
the federation's admission key signs it. A certificate of a **PC** bounds what its whole life cost;
the PC's identity signs it, and the ledger with all its lines is within.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from fedaipc.config import DPSGD, FilterKind, Frozen, Schedule, filter_name
from fedaipc.errors import CertificateError
from fedaipc.secagg.keys import SigningKey, verify

if TYPE_CHECKING:
    from collections.abc import Sequence

_LABEL = b"fedaipc certificate"
MAX_BYTES = 1 << 25

Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Amount = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]

UNITS = {
    "record": "one record (one text with its label) of one PC",
    "client": "all records of one PC",
}
NEIGHBOURS = {
    "record": "data sets that differ by one record added or removed",
    "client": "data sets that differ by all records of one PC added or removed",
}
MECHANISM = (
    "Gaussian noise of standard deviation noise_multiplier times the clip bound on the sum of "
    "per-record gradients, each clipped to that bound in L2 norm; on the PC, before anything leaves"
)
DISTRIBUTED = (
    "the same noise on a sum over the records of several PCs: each adds a share, rounded to whole "
    "numbers, so that any `honest` shares carry all of it; on the PC, before anything leaves"
)
WHOLE = (
    "Gaussian noise of standard deviation noise_multiplier times the clip bound on a PC's whole "
    "update of a round, clipped to that bound in L2 norm; on the PC, before anything leaves"
)
WHOLE_DISTRIBUTED = (
    "the same noise on a sum of whole updates of several PCs: each adds a share, rounded to whole "
    "numbers, so that any `honest` shares carry all of it; on the PC, before anything leaves"
)
SAMPLING = {
    "record": "Poisson: each record joins a step by itself with probability sampling_rate",
    "client": "none that counts: sampling_rate is of steps within an update",
}
AMPLIFICATION = {
    "record": "by the PC's own secret Poisson sampling; none for the coordinator's choice of PCs, "
    "none for how many PCs are in a sum",
    "client": "none: neither for the choice of PCs nor for how many are in a sum",
}
COMPOSITION = "of all steps as mechanisms, void and interrupted attempts included"
# A schedule that was fixed in advance may be accounted for as a whole (PLD). Where somebody may
# have stopped or continued after looking at results it may not: then a bound that was fixed in
# advance counts.
AS_DECLARED = "the run took the steps that its signed job declared: PLD of these"
AT_MOST = "the run did not take the steps that its job declared: PLD of the most that it allows"
NOTHING = "nothing is claimed"
TRUST = (
    "The PC runs this code unchanged, and its operating system's randomness is secret.",
    "The coordinator and other PCs need not be trusted for this epsilon.",
    "It covers what PCs send and all models that follow from it.",
    "It does not cover when PCs answer, whether they are there, and their public size class.",
)


TRUST_DISTRIBUTED = (
    TRUST[0],
    "Secure aggregation holds (fedaipc/secagg/SPEC.md), and each sum has `honest` honest PCs.",
    "The coordinator and the other PCs need not be trusted beyond that for this epsilon.",
    "Against whoever reads one PC's own update, `local` is what its own noise promises.",
    "It covers all sums that can be unmasked and all models that follow from them.",
    TRUST[3],
)
_PERSON = {
    ("record", False): "Records of one person count each; the same record on several PCs composes.",
    ("record", True): "Records of one person count each; the same record on k PCs counts as k "
    "records of one PC.",
    ("client", False): "A person's records on several PCs compose.",
    ("client", True): "A person's records on k PCs count as k PCs.",
}


@dataclass(frozen=True, slots=True)
class Wording:
    """What a certificate says in words."""

    unit: str
    neighbours: str
    mechanism: str
    sampling: str
    amplification: str
    trust: tuple[str, ...]


def wording(schedule: Sequence[Schedule], unit: str) -> Wording:
    """How this schedule is described, which promises something for `unit`."""
    kinds = {
        isinstance(one.mechanism, DPSGD) and one.mechanism.distributed for one in schedule
    } or {False}
    said = {False: MECHANISM, True: DISTRIBUTED}
    if unit == "client":
        said = {False: WHOLE, True: WHOLE_DISTRIBUTED}
    shared = True in kinds
    return Wording(
        unit=UNITS[unit],
        neighbours=NEIGHBOURS[unit],
        mechanism="; or ".join(said[kind] for kind in sorted(kinds)),
        sampling=SAMPLING[unit],
        amplification=AMPLIFICATION[unit],
        trust=(*(TRUST_DISTRIBUTED if shared else TRUST), _PERSON[unit, shared]),
    )


def lifetime_basis(kind: FilterKind) -> str:
    """Why the lifetime budget of a PC with this privacy filter may be claimed."""
    return (
        f"whatever was asked for in its life, the privacy filter ({filter_name(kind)}) never "
        "allowed more than the budget"
    )


class Epsilons(Frozen):
    """Epsilon of one schedule at one delta: an upper bound by each of three accountants."""

    rdp: Amount = Field(description="by Renyi DP")
    prv: Amount = Field(description="by privacy random variables")
    pld: Amount = Field(description="by privacy loss distributions")


class Filter(Frozen):
    """What counts against a PC's lifetime budget: Gaussian DP, or RDP at one order; for life."""

    kind: FilterKind = Field(
        description='"gaussian", or the order of an RDP filter; fixed for the life of the ledger'
    )
    epsilon: Amount = Field(description="charged so far")
    lifetime_epsilon: Amount = Field(description="the budget")


class Guarantee(Frozen):
    """What is claimed, and of what.

    `claim` is the epsilon that holds at `delta`, by what `basis` says. `epsilon` is of `schedule`
    by three accountants, as if the schedule had been fixed in advance. Both are None where nothing
    is promised, and `not_private` says why.
    """

    unit: str = Field(description="what is protected")
    neighbours: str = Field(description="which data sets are compared")
    mechanism: str = Field(description="in words")
    sampling: str = Field(description="in words")
    amplification: str = Field(description="in words")
    composition: str = Field(COMPOSITION, description="in words")
    delta: float = Field(gt=0, lt=1, description="at which epsilon holds")
    schedule: tuple[Schedule, ...] = Field(description="mechanisms with their numbers of steps")
    claim: Amount | None = Field(description="the epsilon that holds; null: nothing is promised")
    basis: str = Field(description="why it holds")
    epsilon: Epsilons | None = Field(description="of the schedule, had it been fixed in advance")
    local: Amount | None = Field(
        None,
        description="where noise is distributed: the same by Renyi DP, of one PC's own noise alone",
    )
    not_private: tuple[str, ...] = Field(description="reasons why nothing is promised")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len({bool(self.not_private), self.epsilon is None, self.claim is None}) > 1:
            raise ValueError("give an epsilon, or the reasons why it is missing")
        return self


class RunFacts(Frozen):
    """`job` is word for word what the admission key signed; `attempts` the coordinator counted."""

    run: str = Field(description="identifier of the run")
    name: str = Field(description="of the run")
    engine: str = Field(description="how PCs were driven")
    status: str = Field(description="of the run")
    rounds: Count = Field(description="that were finished")
    attempts: Count = Field(description="that the coordinator counted")
    pcs: Count = Field(description="of the run")
    aggregation: str = Field(description="kind")
    job: str = Field(description="word for word what the admission key signed")
    job_signature: str = Field(description="hex")
    config_hash: Hex = Field(description="SHA-256 of config.toml")
    vector_hash: str = Field(description="SHA-256 of the trained values")
    test_accuracy: float | None = Field(description="null where not measured")


class PcFacts(Frozen):
    """`ledger` are all its lines."""

    name: str = Field(description="public name")
    size_class: int | None = Field(description="public upper end of its number of records")
    charges: Count = Field(description="how many")
    filter: Filter = Field(description="what counts against its budget")
    ledger: tuple[str, ...] = Field(description="all of its lines")


class AuditFacts(Frozen):
    """An attack on a run with these parameters: epsilon is at least `lower` with `confidence`."""

    method: str = Field(description="of the attack")
    lower: Amount = Field(description="epsilon is at least this")
    confidence: float = Field(gt=0, lt=1, description="with which")
    promised: Amount | None = Field(description="epsilon at most; null where nothing was")
    canaries: Count = Field(description="how many")
    result_hash: Hex = Field(description="SHA-256 of audit.json")


class Software(Frozen):
    """`code` is a hash over the package's modules."""

    fedaipc: str = Field(description="version")
    code: Hex = Field(description="SHA-256 over the package's modules")
    packages: dict[str, str] = Field(description="versions by name")


class Certificate(Frozen):
    """`signer` is the public key that answers for it: of the federation, or of the PC."""

    format: Literal["fedaipc certificate"] = Field(
        "fedaipc certificate", description="what this file is"
    )
    version: Literal[1] = Field(1, description="of the format")
    issued: str = Field(description="UTC, ISO 8601")
    guarantee: Guarantee = Field(description="what is claimed, and of what")
    trust: tuple[str, ...] = Field(description="what has to be trusted, and what is not covered")
    software: Software = Field(description="that issued it")
    run: RunFacts | None = Field(None, description="of a certificate of a run")
    pc: PcFacts | None = Field(None, description="of a certificate of a PC")
    audit: AuditFacts | None = Field(None, description="an attack on the same schedule")
    signer: Hex = Field(description="public key")
    signature: str = Field(
        "",
        pattern=r"^([0-9a-f]{128})?$",
        description="Ed25519, over all the rest in canonical form",
    )

    @model_validator(mode="after")
    def _one_subject(self) -> Self:
        if (self.run is None) == (self.pc is None):
            raise ValueError("a certificate is of a run or of a PC")
        return self

    def signed_part(self) -> bytes:
        """A label, then all except the signature in canonical form (keys sorted, no spaces)."""
        content = self.model_dump(mode="json", exclude={"signature"})
        return _LABEL + json.dumps(content, sort_keys=True, separators=(",", ":")).encode()

    def signed_by(self, key: SigningKey) -> Certificate:
        """The certificate with a signature by `key`, which must be the key of `signer`."""
        signature = key.sign(self.signed_part()).hex()
        return self.model_copy(update={"signature": signature})

    def check_signature(self) -> None:
        """Raises SecAggError."""
        signer, signature = bytes.fromhex(self.signer), bytes.fromhex(self.signature)
        verify(signer, signature, self.signed_part(), "the certificate")

    def write(self) -> bytes:
        return (self.model_dump_json(indent=1) + "\n").encode()

    @classmethod
    def load(cls, path: Path) -> Certificate:
        """Raises CertificateError where the file holds no certificate."""
        try:
            return cls.from_file(path, max_bytes=MAX_BYTES)
        except FileNotFoundError:
            raise CertificateError(f"{path}: no such file") from None
        except OSError as error:
            raise CertificateError(f"{path}: cannot be read ({error.strerror})") from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "certificate"
            raise CertificateError(f"{path}: no certificate ({where}: {first['msg']})") from None
        except ValueError as error:
            raise CertificateError(f"{path}: no certificate ({error})") from None
