"""A server optimizer: a step of fixed length along the signs of a momentum (Lion's idea)."""

from typing import Any, Literal

import numpy as np

import fedaipc as fa


@fa.register
class SignMomentum(fa.ServerOptimizer):
    kind: Literal["sign-momentum"] = "sign-momentum"
    version: Literal["1"] = "1"
    learning_rate: float = 0.02
    momentum: float = 0.9

    def direction(self, mean: Any, state: dict[str, Any]) -> Any:
        before = state.get("momentum", np.zeros_like(mean))
        state["momentum"] = self.momentum * before + (1 - self.momentum) * mean
        return np.sign(state["momentum"])


def main() -> fa.Run:
    data = fa.load_data("sms-spam", limit=600)
    job = fa.Job(server=SignMomentum(), rounds=5)
    return fa.simulate(job, data.partition(clients=4))


if __name__ == "__main__":
    print(main())
