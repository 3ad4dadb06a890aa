"""The owner's policy: what a job may ask of this PC."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedaipc.config import DPSGD
from fedaipc.errors import PrivacyError
from fedaipc.privacy.budget import charged_epsilon, local_epsilon

if TYPE_CHECKING:
    from fedaipc.config import Policy
    from fedaipc.privacy.ledger import Ledger
    from fedaipc.protocol.job import Job
    from fedaipc.secagg.terms import Terms


def check_policy(policy: Policy, job: Job, terms: Terms, ledger: Ledger, own: bytes) -> None:
    """Raise PrivacyError where job or round ask for more than the owner of PC `own` allows.

    Every refusal follows from public facts and names the key in `owner.toml` that decides it.
    Rounds are counted as attempts: each is charged, and a coordinator may need or want them all.
    """
    model, training = job.model, job.training
    faults = {"bits": terms.bits not in policy.bits}
    asked: dict[str, float] = {
        "max_rounds": job.max_attempts,
        "max_local_steps": training.local_steps,
        "max_length": model.max_length,
    }
    if terms.sealed:
        bounds = terms.thresholds
        asked |= {
            "min_sum": bounds.least,
            "min_colluding": bounds.colluding,
            "min_threshold": bounds.shares / bounds.count,
            "max_share": terms.largest_share(own),
        }
    else:
        faults["allow_plain_updates"] = not policy.allow_plain_updates
    if not isinstance(job.privacy, DPSGD):
        faults["allow_not_private"] = not policy.allow_not_private
    else:
        asked |= {
            "max_clip_norm": job.privacy.clip_norm,
            "min_noise": job.privacy.multiplier,
            "max_epsilon": charged_epsilon(job.schedule, job.max_attempts, ledger.filter_kind),
        }
        if job.privacy.distributed:
            # Over the PC's life: the ledger's budget does not count this.
            before = [c.schedule for c in ledger.charges if c.run != job.run and c.schedule.private]
            wanted = job.schedule.times(job.max_attempts)
            faults["allow_distributed_noise"] = not policy.allow_distributed_noise
            asked["max_local_epsilon"] = local_epsilon([*before, wanted], job.privacy.delta)
        if job.privacy.unit != ledger.unit:
            raise PrivacyError(
                f"the job promises something per {job.privacy.unit}; this PC's ledger counts per "
                f"{ledger.unit} permanently"
            )
        ledger.check_counted(job.schedule)
        if job.privacy.delta != ledger.delta:
            raise PrivacyError(
                f"the job promises at delta {job.privacy.delta:g}; this PC's ledger counts at "
                f"{ledger.delta:g} permanently"
            )
    for key, broken in faults.items():
        if broken:
            raise PrivacyError(f"the job asks for more than policy.{key} in owner.toml allows")
    for key, value in asked.items():
        limit = getattr(policy, key)
        if not (value <= limit if key.startswith("max_") else value >= limit):
            raise PrivacyError(
                f"the job asks for more than policy.{key} in owner.toml allows (the job: "
                f"{value:.6g}, the policy: {limit:.6g})"
            )
