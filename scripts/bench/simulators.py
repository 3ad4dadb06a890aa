"""The same rounds on several simulators: Flower's on Ray, pfl-research's, and fedaipc's.

    python scripts/bench/simulators.py            writes results/simulators.json beside this
    python scripts/bench/simulators.py --one NAME       one simulator; prints JSON

50 clients send an update of 78,594 values (a LoRA adapter's) in each of 10 rounds, and the server
takes the mean. The step is trivial, so that what the simulator costs is seen:

- `flower-ray`: an app that adds a constant, with Flower's FedAvg, on Flower's simulation runtime;
- `flower-grid`: the same app on fedaipc's engine, in one process;
- `pfl`: an algorithm that adds a constant, on pfl-research's simulated backend, if it is installed;
- `plain`, `secagg`: fedaipc's own client with a job for LoRA whose sample is nearly always empty:
  signed job, policy, ledger, noise; without and with secure aggregation;
- `secagg-ray`: that with `--engine flower`.

`loop` is another question: 20 clients train LoRA over real texts without secure aggregation, and
`overhead` is what the rounds took beyond the training itself, as a part of it (evaluation apart).

Each has a process of its own; they take turns, and the medians count. `rounds` are the seconds of
the rounds, `all` those of the process, with its start.
"""

# ruff: noqa: ARG001, ARG002 - signatures are Flower's and pfl's
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from fedaipc.machine import facts

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.serverapp import Grid

HERE = Path(__file__).resolve().parent
JOB = HERE.parent.parent / "simulations" / "no-warm-up.toml"
CLIENTS, ROUNDS, VALUES, TURNS = 50, 10, 78_594, 3
NAMES = ("flower-ray", "flower-grid", "pfl", "plain", "secagg", "secagg-ray", "loop")


def main() -> None:
    parser = argparse.ArgumentParser(description="The same rounds on several simulators.")
    parser.add_argument("--one", choices=NAMES)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "simulators.json")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(_measured(arguments.one)))
        return
    names = [name for name in NAMES if name != "pfl" or find_spec("pfl")]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(arguments.turns):
        for name in names:
            started = time.monotonic()
            done = subprocess.run(
                [sys.executable, __file__, "--one", name],
                stdout=subprocess.PIPE, text=True, check=True,
                env={**os.environ, "FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"},
            )  # fmt: skip
            one = json.loads(done.stdout.splitlines()[-1])
            found[name].append({**one, "all": round(time.monotonic() - started, 2)})
            print(name, found[name][-1], flush=True)
    medians = {
        name: {key: round(statistics.median(one[key] for one in runs), 4) for key in runs[0]}
        for name, runs in found.items()
    }
    report = {
        "clients": CLIENTS, "rounds": ROUNDS, "values": VALUES, "medians": medians, "turns": found,
        "simulators": {name: version(name) for name in ("ray", "pfl") if find_spec(name)},
        "machine": facts(),
    }  # fmt: skip
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _measured(name: str) -> dict[str, float]:
    if name == "flower-ray":
        return {"rounds": round(_flower_on_ray(), 3)}
    if name == "flower-grid":
        return {"rounds": round(_flower_on_grid(), 3)}
    if name == "pfl":
        return {"rounds": round(_pfl(), 3)}
    if name == "loop":
        return _loop()
    return {"rounds": round(_own(name), 3)}


_seconds: list[float] = []  # of the rounds of a Flower app


def _flower_apps() -> tuple[Any, Any]:
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg

    client, server = ClientApp(), ServerApp()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        vector = message.content.array_records["arrays"].to_numpy_ndarrays()[0]
        content = RecordDict(
            {
                "arrays": ArrayRecord([vector + np.float32(0.001)]),
                "metrics": MetricRecord({"num-examples": 1}),
            }
        )
        return Message(content, reply_to=message)

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=CLIENTS)
        started = time.monotonic()
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord([np.zeros(VALUES, np.float32)]),
            num_rounds=ROUNDS,
        )
        _seconds.append(time.monotonic() - started)

    return server, client


def _flower_on_ray() -> float:
    from flwr.simulation import run_simulation

    server, client = _flower_apps()
    run_simulation(
        server_app=server, client_app=client, num_supernodes=CLIENTS,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )  # fmt: skip
    return _seconds[0]


def _flower_on_grid() -> float:
    from fedaipc.simulation.flower_adapter import InProcessGrid, run_server_app

    server, client = _flower_apps()
    run_server_app(server, InProcessGrid(client, [{}] * CLIENTS, {}), {})
    return _seconds[0]


def _pfl() -> float:
    import torch
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import FederatedAlgorithm
    from pfl.common_types import Population
    from pfl.context import CentralContext
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import AlgorithmHyperParams, ModelHyperParams
    from pfl.internal.ops import pytorch_ops
    from pfl.internal.ops.selector import set_framework_module
    from pfl.metrics import Metrics
    from pfl.model.base import Model
    from pfl.stats import MappedVectorStatistics

    class Vector(Model):  # type: ignore[misc]
        values = torch.zeros(VALUES)

        def apply_model_update(self, statistics: Any) -> Any:
            self.values += statistics["values"]
            return self, Metrics()

    class Constant(FederatedAlgorithm):  # type: ignore[misc]
        def get_next_central_contexts(
            self, model: Any, iteration: int, params: Any, train: Any, evaluation: Any = None
        ) -> Any:
            if iteration == ROUNDS:
                return None, model, Metrics()
            context = CentralContext(
                current_central_iteration=iteration, do_evaluation=False, cohort_size=CLIENTS,
                population=Population.TRAIN, algorithm_params=params, model_train_params=train,
            )  # fmt: skip
            return (context,), model, Metrics()

        def simulate_one_user(self, model: Any, user_dataset: Any, central_context: Any) -> Any:
            trained = model.values + 0.001
            update = MappedVectorStatistics({"values": trained - model.values}, weight=1)
            return update, Metrics()

        def process_aggregated_statistics(
            self, central_context: Any, aggregate_metrics: Any, model: Any, statistics: Any
        ) -> Any:
            statistics.average()
            return model.apply_model_update(statistics)

    set_framework_module(pytorch_ops)
    users = list(range(CLIENTS))
    data = FederatedDataset(
        lambda user: Dataset((torch.zeros(1),), user_id=user),
        get_user_sampler("minimize_reuse", users),
    )
    algorithm, model = Constant(), Vector()
    started = time.monotonic()
    algorithm.run(
        AlgorithmHyperParams(), SimulatedBackend(data, data), model, ModelHyperParams(),
        send_metrics_to_platform=False,
    )  # fmt: skip
    seconds = time.monotonic() - started
    if not torch.allclose(model.values, torch.full((VALUES,), 0.001 * ROUNDS)):
        raise SystemExit("pfl: not the mean of all updates")
    return seconds


def _own(name: str) -> float:
    """Seconds of all rounds of a job whose sample is nearly always empty."""
    from fedaipc.config import load_settings
    from fedaipc.results import RoundResult
    from fedaipc.simulation import simulation

    found: list[RoundResult] = []
    with tempfile.TemporaryDirectory() as folder:
        settings = load_settings(
            JOB,
            [
                f"rounds={ROUNDS}", f"federation.clients={CLIENTS}", f"output.folder='{folder}'",
                "model.train.kind=lora", "data.limit=500", "data.partition.kind=iid",
                "training.local_steps=1", "privacy.sampling_rate=1e-5", "evaluation.every=1000",
                "privacy.epsilon=100.0", "federation.lifetime_epsilon=1e3", "output.plots=false",
                f"aggregation.kind={'plain' if name == 'plain' else 'secagg'}",
            ],
        )  # fmt: skip
        run = simulation.prepare(settings)
        simulation.simulate(run, "flower" if name == "secagg-ray" else "in-process", found.append)
    if [one.arrived for one in found] != [CLIENTS] * ROUNDS:
        raise SystemExit(f"{name}: not all clients arrived")
    return sum(one.seconds for one in found)


def _loop() -> dict[str, float]:
    """What a simulated round takes beyond the training in it."""
    from fedaipc.config import load_settings
    from fedaipc.privacy.training import train_round
    from fedaipc.results import RoundResult
    from fedaipc.simulation import simulation

    found: list[RoundResult] = []
    training = [0.0]

    def heard(result: RoundResult) -> None:
        if not found:
            training[0] = 0.0  # the first round also loads and rehearses
        found.append(result)

    def timed(*args: Any, **how: Any) -> Any:
        started = time.monotonic()
        try:
            return train_round(*args, **how)
        finally:
            training[0] += time.monotonic() - started

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch("fedaipc.client.trainer.train_round", timed),
    ):
        settings = load_settings(
            JOB,
            [
                "rounds=3", "federation.clients=20", f"output.folder='{folder}'",
                "model.train.kind=lora", "data.partition.kind=iid", "training.local_steps=2",
                "privacy.sampling_rate=0.25", "evaluation.every=1000", "aggregation.kind=plain",
                "speed.workers=1", "output.plots=false",
            ],
        )  # fmt: skip
        simulation.simulate(simulation.prepare(settings), "in-process", heard)
    rounds = sum(one.seconds - one.phases["evaluate"] for one in found[1:])
    return {
        "rounds": round(rounds, 2),
        "training": round(training[0], 2),
        "overhead": round(rounds / training[0] - 1, 4),
    }


if __name__ == "__main__":
    main()
