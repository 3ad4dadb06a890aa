"""A training method: layer norms of the upper layers, and the head."""

from typing import Literal

import fedaipc as fa


@fa.register
class NormsOnly(fa.TrainingMethod):
    kind: Literal["norms-only"] = "norms-only"
    version: Literal["1"] = "1"
    layers: int = 2

    def frozen_layers(self, depth: int) -> int:
        return depth - self.layers

    def trained_layers(self) -> int:
        return self.layers

    def trains(self, name: str, part: str) -> bool:
        return part == "head" or (part == "upper" and "LayerNorm" in name)


def main() -> fa.Run:
    data = fa.load_data("sms-spam", limit=600)
    job = fa.Job(model=fa.TextClassifier("minilm-l6", train=NormsOnly(layers=1)), rounds=3)
    return fa.simulate(job, data.partition(clients=4))


if __name__ == "__main__":
    print(main())
