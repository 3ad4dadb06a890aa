"""How the coordinator moves the model by the mean update (Reddi et al., ICLR 2021).

FedAvg adds it; FedAvgM adds a momentum of it; FedAdam is their algorithm 2 with v starting at
tau^2. All are post-processing: they cost no privacy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
        """The next global vector; all of shape (size,).

        `vector` stays as it is; `mean` is used up, since vectors may be large.
        """
        s = self._settings
        direction: npt.NDArray[Any] = mean
        if s.server_optimizer == "fedavgm":
            momentum = self.state.get("momentum", np.zeros_like(mean))
            mean += s.server_momentum * momentum
            self.state["momentum"] = direction = mean
        elif s.server_optimizer == "fedadam":
            first = self.state.get("first", np.zeros_like(mean))
            second = self.state.get("second", np.full_like(mean, s.server_tau**2))
            first = s.server_momentum * first + (1 - s.server_momentum) * mean
            second = s.server_beta2 * second + (1 - s.server_beta2) * mean * mean
            self.state.update(first=first, second=second)
            direction = first / (np.sqrt(second) + s.server_tau)
        kept = any(direction is state for state in self.state.values())
        moved: npt.NDArray[np.float32] = np.multiply(
            direction, np.float32(s.server_learning_rate), out=None if kept else direction
        )
        moved += vector
        return moved
