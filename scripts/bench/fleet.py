"""What a fleet costs beside its computation, on loopback with real processes, TLS and sealing.

    python scripts/bench/fleet.py [PART ...]      writes results/fleet.json beside this

exchange   one small message to three PCs and back, again and again: over fedaipc's server and
           client loop, and over stock Flower (flower-superlink, flower-supernode, `flwr run`) with
           TLS and node authentication. Both run an app that answers at once and imports torch,
           transformers and opacus. Requirement: 1.5 s at most.
idle       CPU time of a server and three clients that have nothing to do.
lora       sealed rounds of a LoRA job on real texts; of a round, what is not a PC's computation.
           Requirement: 4.5 s at most.
full       sealed rounds of all of MiniLM's 22.6 million values (90 MB an update) by 3, 6 and 12
           clients. Memory is what the server's processes hold of their own, all together; its
           growth is over that of a coordinator that has loaded the model and asked nobody yet.
           Requirement: below 4 vectors; and the most that it holds, within a vector, the same
           whatever the clients.

Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from fedaipc.config import load_owner, load_settings, to_toml  # noqa: E402
from fedaipc.files import write_text  # noqa: E402
from fedaipc.machine import facts  # noqa: E402
from fedaipc.results import Results  # noqa: E402
from scripts import fleet_demo  # noqa: E402
from scripts.bench.stock_flower import running, stock_exchanges  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

RESULT = HERE / "results" / "fleet.json"
PARTS = ["exchange", "idle", "lora", "full"]
EXCHANGES = 20
IDLE = 60.0  # s watched, after as long a silence
ALLOWED_EXCHANGE, ALLOWED_ROUND, ALLOWED_VECTORS = 1.5, 4.5, 4.0
CONFIG = """
[model]
base = "minilm-l6"
[data]
source = "sentiment-4"
limit = 1200
validation_size = 60
test_size = 60
[privacy]
delta = 1e-6
sampling_rate = 0.05
[training]
local_steps = 1
[federation]
lifetime_epsilon = 1000.0  # several jobs on the same PCs
round_timeout = 300
[evaluation]
every = 1000
[output]
plots = false
"""


class Fleet:
    """A federation of `pcs` in `out`, and its processes while it is entered."""

    def __init__(self, out: Path, pcs: int) -> None:
        self.out, self.pcs = out, pcs
        self.server = out / "acme" / "server"
        config = out / "config.toml"
        config.write_text(CONFIG, encoding="utf-8")
        self.port = fleet_demo.free_port()
        self.job = fleet_demo.give_out_texts(out, config, [f"federation.clients={pcs}"])
        fleet_demo.enroll_all(out, self.job, pcs, self.port)
        for folder in self.folders:
            path = folder / "owner.toml"
            owner = load_owner(path)
            speed = owner.speed.model_copy(update={"threads": 1, "micro_batch": 4})
            write_text(path, to_toml(owner.model_copy(update={"speed": speed})))

    @property
    def folders(self) -> list[Path]:
        return [self.out / f"pc-{number:04d}" for number in range(self.pcs)]

    @contextmanager
    def serving(self, client: list[str] | None = None) -> Iterator[None]:
        """Server and clients: fedaipc's, or this command with a PC's folder behind it."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # else all of them would be left
        with ExitStack() as stack:
            address = ["--bind", "127.0.0.1", "--port", self.port]
            stack.enter_context(
                fleet_demo.process(
                    self.out / "server.log", "server", "start", self.server, *address
                )
            )
            fleet_demo.wait_for(self.server / "state" / "running.json")
            for folder in self.folders:
                log = folder.with_suffix(".log")
                if client is None:
                    stack.enter_context(
                        fleet_demo.process(log, "client", "start", "--folder", folder)
                    )
                else:
                    stack.enter_context(running(log, [*client, str(folder)]))
            end = time.monotonic() + 120
            while not all(_says(f.with_suffix(".log"), "connected") for f in self.folders):
                if time.monotonic() > end:
                    raise SystemExit(f"not all clients connect: see the logs in {self.out}")
                time.sleep(0.2)
            yield

    def train(self, name: str, **changes: object) -> Results:
        """Sign and train a job that differs from the base config by these values."""
        words = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
        config = self.out / f"{name}.toml"
        write_text(config, to_toml(load_settings(self.job, words)))
        fleet_demo.do(
            *(
                "federation",
                "sign",
                config,
                "--federation",
                self.out / "acme",
                "--out",
                self.out / name,
            ),
            quiet=True,
        )
        fleet_demo.do("server", "train", self.out / name, "--server", self.server, quiet=True)
        return Results.load(self.server / "runs" / name)

    def server_process(self) -> psutil.Process:
        state = json.loads((self.server / "state" / "running.json").read_text("utf-8"))
        return psutil.Process(state["pid"])


def _says(path: Path, words: str) -> bool:
    return path.is_file() and words in path.read_text("utf-8")


def answer_at_once(folder: Path) -> None:
    """A client whose app has nothing to do; its process is fedaipc's in all else."""
    import logging

    import opacus  # noqa: F401 - as the stock app does
    import torch  # noqa: F401
    import transformers  # noqa: F401

    sys.path.insert(0, str(HERE / "stock"))
    from stock.client_app import app

    from fedaipc.client.moving import AUTHORITY_FILE, NODE_KEY_FILE
    from fedaipc.fleet.node import FleetNode

    logging.basicConfig(level=logging.INFO, force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    owner = load_owner(folder / "owner.toml")
    node = FleetNode(
        str(owner.server), (folder / AUTHORITY_FILE).read_bytes(), folder / NODE_KEY_FILE, folder,
        app, largest=2**20,
    )  # fmt: skip
    signal.signal(signal.SIGTERM, lambda *_: node.stop())
    node.serve()


def exchange(fleet: Fleet) -> dict[str, Any]:
    own = [sys.executable, __file__, "--client"]
    with fleet.serving(own):
        seconds = exchanges(fleet)
    stock = stock_exchanges(fleet.out, fleet.server, fleet.pcs)
    return {
        "pcs": fleet.pcs,
        "seconds": summary(seconds),
        "stock_flower_seconds": summary(stock),
        "stock_over_fedaipc": round(statistics.median(stock) / statistics.median(seconds), 1),
        "allowed_seconds": ALLOWED_EXCHANGE,
    }


def summary(seconds: list[float]) -> dict[str, Any]:
    """Of all exchanges but the first, which is apart: processes and pages are cold there."""
    first, *rest = seconds
    return {
        "first": round(first, 3),
        "median": round(statistics.median(rest), 3),
        "worst": round(max(rest), 3),
        "exchanges": len(rest),
    }


def exchanges(fleet: Fleet) -> list[float]:
    """Seconds of each, in a process's own run on the fleet's server, asked as in a round."""
    from flwr.app import ConfigRecord, RecordDict

    from fedaipc.coordinator.exchange import Exchange
    from fedaipc.fleet.grid import FleetGrid
    from fedaipc.fleet.superlink import SECRET_FILE, UPLOAD_FILE

    state = fleet.server / "state"
    address = json.loads((state / "running.json").read_text("utf-8"))["superlink"]
    seconds = []
    secret = (state / SECRET_FILE).read_bytes()
    with FleetGrid(address, secret, state / UPLOAD_FILE) as grid:
        nodes = grid.get_node_ids()
        for _ in range(EXCHANGES + 1):
            started = time.monotonic()
            asked = [(node, RecordDict({"ask": ConfigRecord({"x": 1})})) for node in nodes]
            answers = list(Exchange(grid).ask("query", asked, timeout=60))
            seconds.append(time.monotonic() - started)
            if len(answers) != fleet.pcs:
                raise SystemExit("a PC did not answer")
    return seconds


def idle(fleet: Fleet) -> dict[str, Any]:
    with fleet.serving():
        time.sleep(IDLE)
        server = [fleet.server_process(), *fleet.server_process().children(recursive=True)]
        clients = [
            process for process in psutil.Process().children(recursive=True)
            if "client" in process.cmdline() and "fedaipc.cli.main" in process.cmdline()
        ]  # fmt: skip
        if len(clients) != fleet.pcs:
            raise SystemExit("not all clients are there")
        before = cpu_seconds(server), cpu_seconds(clients)
        time.sleep(IDLE)
        after = cpu_seconds(server), cpu_seconds(clients)
        own = [own_memory(process) for process in clients]
    return {
        "pcs": fleet.pcs,
        "server_cpu_percent": round(100 * (after[0] - before[0]) / IDLE, 2),
        "client_cpu_percent": round(100 * (after[1] - before[1]) / IDLE / fleet.pcs, 2),
        "client_memory_bytes": int(statistics.median(own)),
    }


def cpu_seconds(processes: list[psutil.Process]) -> float:
    return float(sum(sum(process.cpu_times()[:2]) for process in processes))


def own_memory(process: psutil.Process) -> int:
    """Resident and not shared with a file, such as a library's code."""
    info = process.memory_info()
    return int(info.rss - getattr(info, "shared", 0))


def lora(fleet: Fleet) -> dict[str, Any]:
    with fleet.serving():
        results = fleet.train("lora", model__train__kind="lora", model__train__layers=6, rounds=10)
    rows = [computed(fleet, number) for number in range(fleet.pcs)]
    beside = []
    for index, one in enumerate(results.rounds):
        whole = sum(one.phases[phase] for phase in ("setup", "exchange", "unmask"))
        stages = ["train.mask", "query.agree", "query.unmask"]
        work = sum(max(row[stage][index] for row in rows) for stage in stages)
        beside.append(whole - work)
    return {
        "pcs": fleet.pcs,
        "trainable_parameters": results.model.trainable_parameters,
        "round_seconds": summary([one.seconds for one in results.rounds]),
        "seconds_beside_computation": summary(beside),
        "allowed_seconds": ALLOWED_ROUND,
    }


def computed(fleet: Fleet, number: int) -> dict[str, list[float]]:
    """Seconds that a PC's app took, by kind of message and in order, from its own log."""
    found: dict[str, list[float]] = {}
    log = fleet.folders[number].with_suffix(".log").read_text("utf-8")
    for kind, seconds in re.findall(r"'(\S+)': worked ([0-9.]+) s", log):
        found.setdefault(kind, []).append(float(seconds))
    return found


def full(fleet: Fleet) -> dict[str, Any]:
    run = fleet.server / "runs" / "full"
    with fleet.serving(), Memory(fleet.server_process(), run / "results.json") as memory:
        time.sleep(5)
        without_run = memory.take()
        results = fleet.train("full", model__train__kind="full", rounds=3)
        most = memory.take()
    vector = 4 * results.model.trainable_parameters
    rounds = [one for one in results.rounds if not one.void]
    at_rest = memory.at_rest
    return {
        "pcs": fleet.pcs,
        "vector_bytes": vector,
        "arrived": [one.arrived for one in rounds],
        "round_seconds": summary([one.seconds for one in rounds]),
        "phases": {
            phase: round(statistics.median(one.phases[phase] for one in rounds), 2)
            for phase in rounds[0].phases
        },
        "server_bytes_without_a_run": without_run["all"],
        "server_bytes_at_rest": at_rest,
        "server_most_bytes": most,
        "growth_vectors": round((most["all"] - at_rest["all"]) / vector, 2),
    }


class Memory:
    """The most that a server's processes held of their own, by a look each 50 ms.

    At rest is when the coordinator writes its first `results`: model and vector are loaded, no PC
    was asked yet.
    """

    def __init__(self, server: psutil.Process, results: Path) -> None:
        self._server, self._results, self._over = server, results, threading.Event()
        self._most: dict[str, int] = {}
        self.at_rest: dict[str, int] = {}
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def take(self) -> dict[str, int]:
        """By process, and of all at once; then from anew."""
        most, self._most = self._most, {}
        return dict(sorted(most.items()))

    def _watch(self) -> None:
        names: dict[int, str] = {}
        while not self._over.wait(0.05):
            now = {"supervisor": own_memory(self._server)}
            for child in self._server.children(recursive=True):
                try:
                    name = names.setdefault(child.pid, _module(child))
                    now[name] = now.get(name, 0) + own_memory(child)
                except psutil.Error:
                    continue
            now["all"] = sum(now.values())
            if not self.at_rest and self._results.is_file():
                self.at_rest = now
            most = self._most
            for name, size in now.items():
                most[name] = max(most.get(name, 0), size)


def _module(process: psutil.Process) -> str:
    words = process.cmdline()
    return next((word.rpartition(".")[2] for word in words if "fedaipc.fleet." in word), "other")


def main() -> None:
    parser = argparse.ArgumentParser(description="What a fleet costs beside its computation.")
    parser.add_argument("parts", nargs="*", default=PARTS)
    parser.add_argument("--pcs", type=int, nargs="*", default=[3, 6, 12], help="of the part full")
    parser.add_argument("--client", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.client:
        answer_at_once(chosen.client)
        return
    report = json.loads(RESULT.read_text("utf-8")) if RESULT.is_file() else {}
    small = [part for part in ("exchange", "idle", "lora") if part in chosen.parts]
    with tempfile.TemporaryDirectory(prefix="fedaipc-bench-") as folder:
        if small:
            fleet = Fleet(_made(Path(folder) / "small"), 3)
            for part in small:
                report[part] = globals()[part](fleet)
                print(json.dumps({part: report[part]}, indent=2), flush=True)
        if "full" in chosen.parts:
            report["full"] = []
            for pcs in chosen.pcs:
                report["full"].append(full(Fleet(_made(Path(folder) / f"full-{pcs}"), pcs)))
                print(json.dumps(report["full"][-1], indent=2), flush=True)
    report["machine"] = facts()
    if set(chosen.parts) == set(PARTS) or RESULT.is_file():
        RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    sys.exit(1 if set(chosen.parts) == set(PARTS) and missed(report) else 0)


def missed(report: dict[str, Any]) -> bool:
    """Whether one of the requirements above is not met."""
    full = report["full"]
    more = full[-1]["server_most_bytes"]["all"] - full[0]["server_most_bytes"]["all"]
    return bool(
        report["exchange"]["seconds"]["median"] > ALLOWED_EXCHANGE
        or report["lora"]["seconds_beside_computation"]["median"] > ALLOWED_ROUND
        or max(one["growth_vectors"] for one in full) > ALLOWED_VECTORS
        or more > full[0]["vector_bytes"]
    )


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
