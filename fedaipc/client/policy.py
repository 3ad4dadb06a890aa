"""The owner's policy: what a job may ask of this PC at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedaipc.errors import PrivacyError
from fedaipc.privacy.plan import charged_epsilon

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
        "most_rounds": job.most_attempts > policy.most_rounds,
        "most_local_steps": training.local_steps > policy.most_local_steps,
        "most_length": model.max_length > policy.most_length,
        "bits": terms.bits not in policy.bits,
    }
    if terms.sealed:
        bounds = terms.thresholds
        faults |= {
            "least_sum": bounds.least < policy.least_sum,
            "least_colluding": bounds.colluding < policy.least_colluding,
            "least_threshold": bounds.shares < policy.least_threshold * bounds.count,
            "max_share": terms.largest_share(own) > policy.max_share,
        }
    else:
        faults["allow_plain_updates"] = not policy.allow_plain_updates
    if job.noise_multiplier is None:
        faults["allow_not_private"] = not policy.allow_not_private
    else:
        faults |= {
            "most_clip": job.clip > policy.most_clip,
            "least_noise": job.noise_multiplier < policy.least_noise,
        }
        epsilon = charged_epsilon(job.plan, job.most_attempts, ledger.order)
        faults["most_epsilon"] = epsilon > policy.most_epsilon
        if job.delta != ledger.delta:
            raise PrivacyError(
                f"the job promises at delta {job.delta:g}; this PC's ledger counts at "
                f"{ledger.delta:g} for good"
            )
    for key, broken in faults.items():
        if broken:
            raise PrivacyError(f"the job asks for more than policy.{key} in owner.toml allows")
