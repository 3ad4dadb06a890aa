"""All attacks at several budgets: run them, and write what they found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from fedaipc import bounds, strict_json
from fedaipc.config import DPSGD, NoPrivacy, Settings, settings_from
from fedaipc.errors import ConfigError, OutputError
from fedaipc.lab.audit.canary import CanaryAudit, canary_audit, check_sums_are_sent
from fedaipc.lab.audit.canary_clients import is_distributed, plant, read_data, run_canaries
from fedaipc.lab.audit.inversion import Inversion, inversion_attack
from fedaipc.lab.audit.membership import Membership, membership_attack, membership_pools
from fedaipc.privacy.budget import round_schedule
from fedaipc.report.formatting import at_least, at_most

FORMAT = "fedaipc audit"
_MAX_BYTES = 1 << 26  # an audit with curves of many budgets
_INVERSION = {
    "model": {"train": "full", "keep_layers": 1, "max_length": 32},
    "training": {"local_steps": 1, "optimizer": "sgd", "learning_rate": 0.1},
    "privacy": {"sampling_rate": 1.0},
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What was attacked at one budget; `epsilon` is the target, None for no privacy.

    With local `noise` the canaries are looked for in single updates, otherwise in sums.
    """

    epsilon: float | None
    noise_multiplier: float | None
    sampling_rate: float
    steps: int
    clip_norm: float | None
    test_accuracy: float | None
    canary: CanaryAudit
    membership: Membership | None
    noise: Literal["local", "distributed"] = "local"


@dataclass(frozen=True, slots=True)
class AuditReport:
    """`pcs` and `canaries` are of the canary audit: canaries on each PC."""

    name: str
    pcs: int
    canaries: int
    settings: tuple[Setting, ...]
    inversion: Inversion | None

    @property
    def contradictions(self) -> list[Setting]:
        """Budgets whose promise an attack has refuted."""
        return [one for one in self.settings if not one.canary.holds]

    def to_json(self) -> str:
        """As in audit.json; `load_report` reads it."""
        content = {"format": FORMAT, "version": 1, **asdict(self)}
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    def rows(self) -> list[dict[str, Any]]:
        """One for each budget: what was promised, what the canaries prove, what membership finds.

        `epsilon` is the target; `promised` is at most, `reached` at least what holds.
        """
        return [
            {
                "epsilon": one.epsilon,
                "promised": one.canary.promised,
                "reached": one.canary.bound.lower,
                "right": one.canary.bound.right,
                "guesses": one.canary.bound.guesses,
                "membership_auc": one.membership and one.membership.likelihood_ratio.auc,
                "test_accuracy": one.test_accuracy,
            }
            for one in self.settings
        ]

    def _repr_html_(self) -> str:
        from fedaipc.report.table import Table

        rows = self.rows()
        return Table.of_records(rows).__html__() if rows else "no budget"


def load_report(path: Path) -> AuditReport:
    """What `to_json` wrote. Raises OutputError."""
    no_audit = OutputError(f"{path}: is not what `fedaipc privacy audit` writes")
    try:
        content = dict(strict_json.parse(bounds.read_bytes(path, _MAX_BYTES), max_bytes=_MAX_BYTES))
        known = content.pop("format", None), content.pop("version", None)
        report = TypeAdapter(AuditReport).validate_python(content)
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({error.strerror})") from None
    except (TypeError, ValueError):  # also what pydantic refuses
        raise no_audit from None
    if known != (FORMAT, 1):
        raise no_audit
    return report


def at_budget(settings: Settings, epsilon: float | None) -> Settings:
    """The same job for another budget, None for no privacy. Raises ConfigError."""
    tree: dict[str, Any] = settings.model_dump(exclude_none=True)
    privacy = tree["privacy"]
    if epsilon is None:
        privacy = {key: privacy[key] for key in NoPrivacy.model_fields if key in privacy}
        privacy["kind"] = "none"
    else:
        privacy.pop("noise_multiplier", None)
        privacy["epsilon"] = epsilon
        if not isinstance(settings.privacy, DPSGD):
            privacy["kind"] = "dp-sgd"
        tree["federation"]["lifetime_epsilon"] = epsilon
    return settings_from({**tree, "privacy": privacy})


def run_audit(
    settings: Settings,
    budgets: Sequence[float | None],
    folder: Path,
    *,
    canaries: int,
    runs: int,
    inversion: bool,
    say: Callable[[str], None] = lambda _: None,
    keep: Callable[[AuditReport], None] = lambda _: None,
) -> AuditReport:
    """Attack at each budget. `runs` 0 leaves membership out. Runs lie in `folder` meanwhile.

    `canaries` are over all PCs: each gets an equal part, and one at least.

    Whatever is refused is refused before the first run; `keep` gets what is known after each
    budget, since all of it can take hours. Raises FedaipcError, OSError.
    """
    if settings.speed.cache_folder is None:
        cache = str((folder / "cache").resolve())
        speed = settings.speed.model_copy(update={"cache_folder": cache})
        settings = settings.model_copy(update={"speed": speed})
    settings = settings.model_copy(
        update={"evaluation": settings.evaluation.model_copy(update={"every": 100_000})}
    )
    check_sums_are_sent(settings)
    jobs = [at_budget(settings, epsilon) for epsilon in budgets]
    for job in jobs:
        round_schedule(job)  # there may be no such noise
    to_read = _jobs_to_read(settings, budgets) if inversion else None
    data = read_data(settings)
    each = max(1, canaries // len(data.parts))
    pcs = plant(data, each)
    if runs:
        membership_pools(data, runs)
    report = AuditReport(settings.output.name, len(pcs), each, (), None)
    for epsilon, own in zip(budgets, jobs, strict=True):
        name = "none" if epsilon is None else f"{epsilon:g}"
        place = folder / f"epsilon-{name}"
        say(f"epsilon {name}: a run with {each * len(pcs):,} canaries")
        audited = run_canaries(own, data, pcs, place / "canaries")
        canary = canary_audit(audited, folder / "cache")
        say(f"epsilon {name}: at least {at_least(canary.bound.lower)}, promised {_promise(canary)}")
        membership = None
        if runs:
            say(f"epsilon {name}: {runs} runs for membership inference")
            membership = membership_attack(own, data, place / "membership", runs)
        results = audited.results
        once, dp_sgd = results.privacy.schedule, results.privacy.dp_sgd
        one = Setting(
            epsilon=epsilon,
            noise_multiplier=None if dp_sgd is None else dp_sgd.multiplier,
            sampling_rate=once.mechanism.sampling_rate,
            steps=once.steps * results.charged,
            clip_norm=None if dp_sgd is None else dp_sgd.clip_norm,
            test_accuracy=None if results.test is None else results.test.accuracy,
            canary=canary,
            membership=membership,
            noise="local" if dp_sgd is None else dp_sgd.noise,
        )
        report = replace(report, settings=(*report.settings, one))
        keep(report)
        shutil.rmtree(place, ignore_errors=True)
    if to_read is not None:
        say("gradient inversion: runs of all layers")
        plain, private = to_read
        read = inversion_attack(plain, read_data(plain), private, folder / "inversion")
        report = replace(report, inversion=read)
    return report


def _jobs_to_read(
    settings: Settings, budgets: Sequence[float | None]
) -> tuple[Settings, dict[str, Settings]]:
    """The job as it would train all layers: without privacy, and at each budget by name."""
    tree: dict[str, Any] = settings.model_dump(exclude_none=True, exclude={"warm_up"})
    for section, values in _INVERSION.items():
        tree[section] |= values
    tree |= {"rounds": 2, "server": "fedavg"}
    try:
        job = settings_from(tree)
        plain = at_budget(job, None)
        if is_distributed(job):
            return plain, {}  # a single update would have a share of the noise only
        return plain, {f"epsilon {e:g}": at_budget(job, e) for e in budgets if e is not None}
    except ConfigError as error:
        raise ConfigError(f"gradient inversion of this job: {error}") from None


def _promise(canary: CanaryAudit) -> str:
    return "nothing" if canary.promised is None else f"at most {at_most(canary.promised)}"
