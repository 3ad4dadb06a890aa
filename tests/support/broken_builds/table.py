"""Which fault is caught by which named check; the audit's part is in test_broken_builds.py."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from tests.support import noise_shares as shares
from tests.support import private_rounds as steps
from tests.support.broken_builds import checks, faults

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    Fault = Callable[[pytest.MonkeyPatch], None]
    Check = Callable[[], None]

ALL_FAULTS: tuple[Fault, ...] = tuple(
    value
    for value in vars(faults).values()
    if inspect.isfunction(value) and value.__module__ == faults.__name__
)
ALL_CHECKS: tuple[Check, ...] = tuple(
    value
    for module in (steps, shares, checks)
    for name, value in vars(module).items()
    if name.startswith("check_") and value.__module__ == module.__name__
)
# At least this one must catch it; the others that do are in the generated table.
CATCHES: dict[Fault, Check] = {
    faults.no_noise: steps.check_noise,
    faults.a_tenth_of_the_noise: steps.check_noise,
    faults.noise_in_round_0_only: checks.check_every_round,
    faults.noise_in_the_first_step_only: steps.check_every_step,
    faults.no_clip: steps.check_neighbours,
    faults.clip_of_the_batch_mean: steps.check_neighbours,
    faults.clip_per_layer: steps.check_neighbours,
    faults.norms_of_tokens_alone: steps.check_neighbours_by_tokens,
    faults.noise_from_a_fixed_seed: steps.check_fresh_noise,
    faults.poisson_sampling_off: steps.check_poisson,
    faults.sample_of_fixed_size: steps.check_poisson,
    faults.empty_sample_skipped: steps.check_empty_sample,
    faults.true_count_as_divisor: steps.check_divisor,
    faults.drawn_count_as_divisor: steps.check_noise,
    faults.shares_for_all_who_answer: shares.check_shares_of_the_honest,
    faults.a_pc_without_its_share: shares.check_each_share,
    faults.the_same_share_twice: shares.check_shares_are_fresh,
    faults.shares_from_a_fixed_seed: shares.check_shares_are_fresh,
    faults.limit_after_the_share: shares.check_limit_before_the_share,
    faults.whole_update_not_clipped: shares.check_whole_update,
    faults.each_value_clipped_by_itself: shares.check_whole_update,
    faults.a_new_engine_per_round: checks.check_composition,
    faults.charge_after_training: checks.check_charge_before_training,
    faults.budget_per_run: checks.check_lifetime_budget,
    faults.true_count_as_weight: checks.check_public_weight,
}
# Of these the audit of a real run must refute the promise by itself.
AUDIT_REFUTES: tuple[Fault, ...] = (faults.a_tenth_of_the_noise,)
