"""How the coordinator moves the model by the mean update (Reddi et al., ICLR 2021).

All of it post-processes noisy sums and costs no privacy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from fedaipc.config.section import Choice, Positive, register

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vector = npt.NDArray[np.float32]
    State = dict[str, Vector]


class ServerOptimizer(Choice):
    """What is done with the mean of the updates. Public.

    One of your own gives `direction`: where to go, before the learning rate.
    """

    usual: ClassVar[str] = "fedadam"

    learning_rate: Positive = Field(1.0, description="of the server's step")

    def direction(self, mean: Vector, state: State) -> Vector:
        """Where to go, of the shape of `mean`, which may be changed in place: vectors may be large.

        `state` is empty in the first round, is kept over rounds, and holds vectors by name.
        """
        raise NotImplementedError

    def step(self, vector: Vector, mean: Vector, state: State) -> Vector:
        """The next global vector; all of shape (size,). `vector` stays as it is."""
        import numpy as np

        direction = self.direction(mean, state)
        kept = any(direction is kept for kept in state.values())
        moved: npt.NDArray[Any] = np.multiply(
            direction, np.float32(self.learning_rate), out=None if kept else direction
        )
        moved += vector
        return moved


@register
class FedAvg(ServerOptimizer):
    """Adds the mean update."""

    kind: Literal["fedavg"] = "fedavg"

    def direction(self, mean: Vector, state: State) -> Vector:
        del state
        return mean


@register
class FedAvgM(ServerOptimizer):
    """Adds a momentum of the mean updates."""

    kind: Literal["fedavgm"] = "fedavgm"
    momentum: float = Field(0.9, ge=0, lt=1, description="what stays of the step before")

    def direction(self, mean: Vector, state: State) -> Vector:
        if "momentum" in state:
            mean += self.momentum * state["momentum"]
        state["momentum"] = mean
        return mean


@register
class FedAdam(ServerOptimizer):
    """Algorithm 2 of Reddi et al., with v starting at tau^2."""

    kind: Literal["fedadam"] = "fedadam"
    learning_rate: Positive = Field(0.05, description="of the server's step")
    beta1: float = Field(0.9, ge=0, lt=1, description="of the first moment")
    beta2: float = Field(0.99, ge=0, lt=1, description="of the second moment")
    tau: Positive = Field(1e-3, description="adaptivity: the smallest divisor")

    def direction(self, mean: Vector, state: State) -> Vector:
        import numpy as np

        if not state:
            state.update(first=np.zeros_like(mean), second=np.full_like(mean, self.tau**2))
        first, second = state["first"], state["second"]
        # One vector beside the moments, for all that lies between: a model's may be large.
        room = mean * (1 - self.beta1)
        first *= self.beta1
        first += room
        np.multiply(mean, 1 - self.beta2, out=room)
        room *= mean
        second *= self.beta2
        second += room
        np.sqrt(second, out=room)
        room += self.tau
        np.divide(first, room, out=room)
        return room
