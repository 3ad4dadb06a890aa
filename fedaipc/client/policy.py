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
    faults = {
        "max_rounds": job.max_attempts > policy.max_rounds,
        "max_local_steps": training.local_steps > policy.max_local_steps,
        "max_length": model.max_length > policy.max_length,
        "bits": terms.bits not in policy.bits,
    }
    if terms.sealed:
        bounds = terms.thresholds
        faults |= {
            "min_sum": bounds.least < policy.min_sum,
            "min_colluding": bounds.colluding < policy.min_colluding,
            "min_threshold": bounds.shares < policy.min_threshold * bounds.count,
            "max_share": terms.largest_share(own) > policy.max_share,
        }
    else:
        faults["allow_plain_updates"] = not policy.allow_plain_updates
    if not isinstance(job.privacy, DPSGD):
        faults["allow_not_private"] = not policy.allow_not_private
    else:
        faults |= {
            "max_clip_norm": job.privacy.clip_norm > policy.max_clip_norm,
            "min_noise": job.privacy.multiplier < policy.min_noise,
        }
        epsilon = charged_epsilon(job.schedule, job.max_attempts, ledger.order)
        faults["max_epsilon"] = epsilon > policy.max_epsilon
        if job.privacy.distributed:
            # Over the PC's life: the ledger's budget does not count this.
            before = [c.schedule for c in ledger.charges if c.run != job.run and c.schedule.private]
            wanted = job.schedule.times(job.max_attempts)
            local = local_epsilon([*before, wanted], job.privacy.delta)
            faults["allow_distributed_noise"] = not policy.allow_distributed_noise
            faults["max_local_epsilon"] = local > policy.max_local_epsilon
        if job.privacy.unit != ledger.unit:
            raise PrivacyError(
                f"the job promises something per {job.privacy.unit}; this PC's ledger counts per "
                f"{ledger.unit} permanently"
            )
        if job.privacy.delta != ledger.delta:
            raise PrivacyError(
                f"the job promises at delta {job.privacy.delta:g}; this PC's ledger counts at "
                f"{ledger.delta:g} permanently"
            )
    for key, broken in faults.items():
        if broken:
            raise PrivacyError(f"the job asks for more than policy.{key} in owner.toml allows")
