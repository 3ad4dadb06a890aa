"""How the coordinator moves the model by the mean update (Reddi et al., ICLR 2021).

FedAvg adds it; FedAvgM adds a momentum of it; FedAdam is their algorithm 2 with v starting at
tau^2. All are post-processing: they cost no privacy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from fedaipc.config import FederationSettings


class ServerOptimizer:
    """`state` holds what the next step needs besides the model: vectors by name."""

    def __init__(
        self, settings: FederationSettings, state: dict[str, npt.NDArray[np.float32]]
    ) -> None:
        self._settings = settings
        self.state = state

    def step(
        self, vector: npt.NDArray[np.float32], mean: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """The next global vector; `vector` and `mean` of shape (size,) stay as they are."""
        s = self._settings
        direction: npt.NDArray[np.floating] = mean
        if s.server_optimizer == "fedavgm":
            momentum = self.state.get("momentum", np.zeros_like(mean))
            direction = s.server_momentum * momentum + mean
            self.state["momentum"] = direction
        elif s.server_optimizer == "fedadam":
            first = self.state.get("first", np.zeros_like(mean))
            second = self.state.get("second", np.full_like(mean, s.server_tau**2))
            first = s.server_momentum * first + (1 - s.server_momentum) * mean
            second = s.server_beta2 * second + (1 - s.server_beta2) * mean * mean
            self.state.update(first=first, second=second)
            direction = first / (np.sqrt(second) + s.server_tau)
        return (vector + s.server_learning_rate * direction).astype(np.float32)
