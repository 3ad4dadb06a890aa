"""A DP mechanism: two coins decide whether a record joins a step.

A record joins a step only if two coins of its own, each of probability q, both fall on heads: that
is Poisson sampling of rate q squared, and so the accountant is told.
"""

from typing import Any, Literal

from dp_accounting import dp_event

import fedaipc as fa


@fa.register
class TwoCoins(fa.DPSGD):
    kind: Literal["two-coins"] = "two-coins"  # type: ignore[assignment]
    version: Literal["1"] = "1"

    def sample(self, draw: Any) -> Any:
        return draw.poisson(self.sampling_rate**2)

    def event(self) -> Any:
        noise = dp_event.GaussianDpEvent(self.multiplier)
        return dp_event.PoissonSampledDpEvent(self.sampling_rate**2, noise)


def main() -> fa.Run:
    data = fa.load_data("sms-spam", limit=600)
    job = fa.Job(privacy=TwoCoins(epsilon=4, sampling_rate=0.7), rounds=3)
    return fa.simulate(job, data.partition(clients=4))


if __name__ == "__main__":
    print(main())
