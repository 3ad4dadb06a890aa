"""A job as an object: the settings of a config file, and what one does with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedaipc.config import DPSGD, Settings, load_settings, recipe_text, to_toml

if TYPE_CHECKING:
    from typing import Self

    from fedaipc.api.data import Data
    from fedaipc.model.classifier import Classifier


class Job(Settings):
    """What is trained, and how: model, privacy, training, aggregation, server, rounds.

    The same keys as in TOML and in --set, with the same defaults and checks. Raises ConfigError.
    """

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Read a config file. Raises ConfigError."""
        return cls.of(load_settings(Path(path)))

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The same settings as a job; what was not given stays open."""
        return cls(**{name: getattr(settings, name) for name in settings.model_fields_set})

    def to_toml(self, path: str | Path | None = None) -> str:
        """The config file of this job, also written to `path`: for `fedaipc simulate`."""
        text = to_toml(self)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def with_data(self, data: Data | None) -> Self:
        """The job on these texts and clients; as it is without any."""
        if data is None:
            return self
        given = {name: getattr(self, name) for name in self.model_fields_set}
        federation = self.federation
        if data.clients is not None:
            tree = {name: getattr(federation, name) for name in federation.model_fields_set}
            federation = type(federation)(**{**tree, "clients": data.clients})
        return type(self)(**{**given, "data": data.settings, "federation": federation})

    def plan(self, data: Data | None = None) -> Plan:
        """What this job will cost in privacy and traffic, before anything runs.

        With `data` the rounds follow from its labels where nobody gave them, the model is opened to
        count what it trains and how many texts it cuts, and too much noise is told. Raises
        PrivacyError where no noise meets the target, delta is too large or a lifetime budget covers
        no round, DataError, ModelError.
        """
        from fedaipc.privacy.budget import (
            check_delta,
            early_end,
            local_epsilon,
            planned_epsilon,
            size_class,
        )
        from fedaipc.privacy.signal import noise_warning
        from fedaipc.protocol.job import job_schedule

        job: Settings = self.with_data(data)
        values, warning = None, None
        notes: tuple[str, ...] = ()
        if data is not None:
            from fedaipc.api.data import Data
            from fedaipc.config import for_labels
            from fedaipc.model.classifier import Classifier

            job = for_labels(job, data.labels)
            if data.clients is None:  # then as many as `simulate` makes
                data = Data(data.settings, job.federation.clients)
            if job.privacy.private:
                check_delta(
                    job.privacy.delta,
                    job.privacy.unit,
                    public_class=size_class(max(data.sizes)),
                    clients=len(data.sizes),
                )
            classifier = Classifier(job.model, data.labels)
            values = classifier.layout.size
            notes = (*data.notes, *_fit_notes(classifier, data))
        once = job_schedule(job)
        if data is not None and values is not None:
            sizes = [size_class(size) for size in data.sizes]
            warning = noise_warning(once, job, values, len(data.labels), sizes)
        if once.private:
            lifetime = job.federation.lifetime_epsilon
            notes = (*filter(None, [early_end(once, job.rounds, lifetime)]), *notes)
        mechanism = once.mechanism
        return Plan(
            recipe=recipe_text(job),
            rounds=job.rounds,
            unit=mechanism.unit,
            delta=mechanism.delta,
            noise_multiplier=mechanism.multiplier if isinstance(mechanism, DPSGD) else None,
            epsilon=planned_epsilon(once, job.rounds) if once.private else None,
            honest=mechanism.honest if isinstance(mechanism, DPSGD) else None,
            local_epsilon=local_epsilon([once.times(job.rounds)], mechanism.delta)
            if once.local != once
            else None,
            secure_aggregation=job.aggregation.kind == "secagg",
            trained_values=values,
            bytes_up=None if values is None else values * job.aggregation.bits // 8,
            warning=warning,
            notes=notes,
        )


def _fit_notes(classifier: Classifier, data: Data) -> list[str]:
    """How many texts the model cuts, and how many tokens it does not know."""
    from fedaipc.model.fit import measure_fit
    from fedaipc.report.formatting import fit_text, fit_warnings

    most = classifier.settings.max_length
    fit = measure_fit(classifier.tokenizer, [text for text, _ in data.records], most)
    return [f"{fit_text(fit)} at model.max_length = {most}", *fit_warnings(training=fit)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the job costs one client that takes part in every round.

    `unit` is what is protected: one record, or one client with all of its records. `epsilon` is by
    each accountant, an upper bound each: None without privacy. `trained_values` and `bytes_up` (of
    one update, without what secure aggregation adds) are None where the data is not known. With
    distributed noise `epsilon` holds for sums with `honest` honest clients, and `local_epsilon`
    (RDP) against whoever reads one client's own update; with local noise both are None. `notes` say
    whether budgets end early, and of the texts what was left out and why, what looks odd, what is
    cut.
    """

    recipe: str
    rounds: int
    unit: str
    delta: float
    noise_multiplier: float | None
    epsilon: dict[str, float] | None
    honest: int | None
    local_epsilon: float | None
    secure_aggregation: bool
    trained_values: int | None
    bytes_up: int | None
    warning: str | None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        from fedaipc.report.formatting import at_most

        lines = [self.recipe]
        if self.epsilon is None:
            lines.append("NOT PRIVATE: neither clip nor noise")
        else:
            bounds = ", ".join(f"{at_most(v)} ({name.upper()})" for name, v in self.epsilon.items())
            whom = "against the server, other clients and all who see a model: "
            if self.local_epsilon is None:
                whom += "the noise is each client's own"
            else:
                whom += (
                    f"each sum carries the noise of {self.honest} honest clients; epsilon "
                    f"{at_most(self.local_epsilon)} (RDP) against whoever reads one client's own "
                    "update"
                )
            promise = f"epsilon {bounds} at delta {self.delta:g}, per {self.unit}, over "
            promise += f"{self.rounds} rounds"
            lines += [
                f"noise multiplier {self.noise_multiplier:.4g}",
                promise,
                whom,
            ]
        lines.append(
            "the server sees sums of updates alone"
            if self.secure_aggregation
            else "NOT SEALED: the server can read every client's update"
        )
        if self.bytes_up is not None:
            lines.append(
                f"{self.trained_values:,} trained values, {self.bytes_up / 1e6:.3g} MB up for each "
                "client and round"
            )
        return "\n".join([*lines, *([self.warning] if self.warning else []), *self.notes])

    def _repr_html_(self) -> str:
        from fedaipc.report.template import render

        return render("plain.html.j2", text=str(self))
