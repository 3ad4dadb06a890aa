"""Simulations of 100, 200, 1,000 and 10,000 clients: seconds of a round by phase, and memory.

    python scripts/bench/simulation.py            writes results/simulation.json beside this
    python scripts/bench/simulation.py --before CHECKOUT   and 200 clients with an older checkout
    python scripts/bench/simulation.py --plain             `plain` alone, into the same file
    python scripts/bench/simulation.py --one 1000 3 2      one size, rounds, workers; prints JSON

Each client trains a head by one private step of all its texts, with secure aggregation. The texts
are those of the main task, given out evenly: of 10,000 clients each has one or two. Each size has a
process of its own, and is measured with one process and with one for each core. Seconds of a round
are of the last rounds, if there are several; the first also makes the keys of the epoch. `frozen`
is how long the frozen layers took for all texts with the start of the processes, `plain` how long
transformers alone takes for the same texts in batches, in one process. `peak_bytes` is the most
memory that all processes of the simulation had at a time, what they share counted once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import psutil

from fedaipc.machine import cpus, facts

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
JOB = HERE.parent.parent / "simulations" / "no-warm-up.toml"
SIZES = {100: 3, 200: 3, 1000: 3, 10_000: 1}  # clients, and rounds
BEFORE = (200, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description="Simulations of many clients.")
    parser.add_argument("--one", type=int, nargs=3, metavar=("CLIENTS", "ROUNDS", "WORKERS"))
    parser.add_argument("--most", type=int, default=10_000, help="leave larger sizes out")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--before", type=Path, metavar="CHECKOUT")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "simulation.json")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measured(*arguments.one)))
        return
    report: dict[str, Any] = {"job": JOB.name}
    if arguments.plain:
        report = json.loads(arguments.out.read_text(encoding="utf-8"))
    else:
        if arguments.before:
            report["before"] = _run(*BEFORE, 0, checkout=arguments.before)
        report["runs"] = [
            _run(clients, rounds, workers)
            for clients, rounds in SIZES.items()
            if clients <= arguments.most
            for workers in sorted({1, cpus()})
            if workers > 1 or clients < max(SIZES)
        ]
    report["plain"] = _plain()
    report["machine"] = facts()
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _run(clients: int, rounds: int, workers: int, checkout: Path | None = None) -> dict[str, Any]:
    """One simulation in a process of its own, by the code of `checkout`."""
    environment = {**os.environ, **({"PYTHONPATH": str(checkout)} if checkout else {})}
    process = subprocess.Popen(
        [sys.executable, __file__, "--one", str(clients), str(rounds), str(workers)],
        stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    peak = 0
    while process.poll() is None:
        peak = max(peak, _memory(process.pid))
        time.sleep(1)
    if process.returncode:
        raise SystemExit(process.returncode)
    output, _ = process.communicate()
    found: dict[str, Any] = {**json.loads(output.splitlines()[-1]), "peak_bytes": peak}
    print(json.dumps(found), flush=True)
    return found


def _plain() -> dict[str, float]:
    """Seconds that the frozen layers take without fedaipc: texts sorted by length, 64 at a time."""
    import torch

    from fedaipc.config import load_settings
    from fedaipc.data.prepare import prepare_simulation
    from fedaipc.model.load import load_base, load_tokenizer

    settings = load_settings(JOB)
    data = prepare_simulation(settings.data, settings.federation.clients)
    texts = data.train.texts
    tokenizer = load_tokenizer(settings.model)
    model = load_base(settings.model, data.labels).hf.base_model  # as transformers made it
    started = time.monotonic()
    tokens = tokenizer(list(texts), truncation=True, max_length=settings.model.max_length)
    order = sorted(range(len(texts)), key=lambda i: len(tokens["input_ids"][i]))
    with torch.inference_mode():
        for start in range(0, len(order), 64):
            chosen = [tokens["input_ids"][i] for i in order[start : start + 64]]
            batch = tokenizer.pad({"input_ids": chosen}, return_tensors="pt")
            states = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1)
            (states * mask).sum(1) / mask.sum(1)
    seconds = time.monotonic() - started
    return {"seconds": round(seconds, 2), "texts": len(texts), "threads": torch.get_num_threads()}


def _memory(parent: int) -> int:
    """Bytes of a process and its children: of memory that n share, each has the nth part."""
    total = 0
    with suppress(psutil.Error):
        process = psutil.Process(parent)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                info = one.memory_full_info()
                total += getattr(info, "pss", info.uss)  # which Linux alone knows
    return total


def measured(clients: int, rounds: int, workers: int) -> dict[str, Any]:
    """One simulation, whose PCs are played by so many processes."""
    from fedaipc.config import load_settings
    from fedaipc.results import RoundResult
    from fedaipc.simulation import simulation

    found: list[RoundResult] = []
    frozen = [0.0]
    own = [f"speed.workers={workers}"] if workers else []  # which older code does not know
    real: Any = getattr(simulation, "_grid", None)

    @contextmanager
    def timed(*args: Any) -> Iterator[Any]:
        started = time.monotonic()
        with real(*args) as grid:
            frozen[0] = time.monotonic() - started
            yield grid

    started = time.monotonic()
    patch = mock.patch.object(simulation, "_grid", timed) if workers else nullcontext()
    with tempfile.TemporaryDirectory() as folder, patch:
        settings = load_settings(
            JOB,
            [
                f"rounds={rounds}", f"federation.clients={clients}", f"output.folder='{folder}'",
                "data.partition.kind=iid", "training.local_steps=1", "privacy.sampling_rate=1.0",
                *own, "evaluation.every=1000",
                "federation.lifetime_epsilon=1e3", "privacy.epsilon=100.0",
            ],
        )  # fmt: skip
        run = simulation.prepare(settings)
        prepared = time.monotonic() - started
        results = simulation.simulate(run, "in-process", found.append)
    last = found[1:] or found
    phases = {
        name: round(sum(one.phases[name] for one in last) / len(last), 2) for name in last[0].phases
    }
    mean = sum(one.seconds for one in last) / len(last)
    return {
        "clients": clients,
        "rounds": rounds,
        "workers": max(1, workers),
        "texts": results.data.train,
        "arrived": [one.arrived for one in found],
        "seconds": {
            "prepare": round(prepared, 1),
            "frozen": round(frozen[0], 1),
            "first round": round(found[0].seconds, 2),
            "a round": round(mean, 2),
            "all": round(time.monotonic() - started, 1),
        },
        "phases": phases,
        "milliseconds_per_client": round(1000 * mean / clients, 2),
        "bytes_per_client": {
            "up": last[-1].bytes_up // clients,
            "down": last[-1].bytes_down // clients,
        },
    }


if __name__ == "__main__":
    main()
