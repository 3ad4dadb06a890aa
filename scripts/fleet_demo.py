"""Bring up a federation on this machine as people would, train the demo's job, stop everything.

    scripts/fleet-demo [N] [--rounds R] [--out FOLDER] [--config CONFIG] [--test-seed SEED]

Every step is a `fedaipc` command that is printed as it is run: make a federation, invite, enroll N
PCs with their share of the demo's texts, admit them, sign the job, start the server and N clients,
train. All processes talk over TLS on loopback. At the end: where the time went.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedaipc.config import load_owner, load_settings, to_toml
from fedaipc.data.prepare import prepare_simulation
from fedaipc.files import write_text
from fedaipc.results import Results

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
FEDAIPC = [sys.executable, "-m", "fedaipc.cli.main"]


def main() -> None:
    parser = argparse.ArgumentParser(description="A server and N clients on this machine.")
    parser.add_argument("pcs", nargs="?", type=int, default=4)
    parser.add_argument("--rounds", type=int, help="instead of the config's")
    parser.add_argument("--out", type=Path, default=Path("runs/fleet-demo"))
    parser.add_argument("--config", type=Path, default=ROOT / "simulations" / "demo.toml")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument(
        "--test-seed", type=int, help="PCs' randomness can be repeated: NOT PRIVATE"
    )
    chosen = parser.parse_args()
    if chosen.pcs < 3:
        parser.error("sealed sums need three PCs at least")
    if chosen.out.exists():
        parser.error(f"{chosen.out} is there already: give another --out, or delete it")
    chosen.out.mkdir(parents=True)
    # The demo's texts on a few PCs are many on each: delta must be below a tenth of one over them.
    changes = ["privacy.delta=1e-6", *chosen.set]
    demo(chosen.out, chosen.config, chosen.pcs, chosen.rounds, changes, chosen.test_seed)


def demo(
    out: Path, config: Path, pcs: int, rounds: int | None, changes: list[str], seed: int | None
) -> Results:
    """All of it; every process is gone when this returns or raises."""
    changes = [*changes, f"federation.clients={pcs}"]
    changes += [] if rounds is None else [f"rounds={rounds}"]
    job, port, server = give_out_texts(out, config, changes), free_port(), out / "acme" / "server"
    enroll_all(out, job, pcs, port)
    for number in range(pcs):
        path = out / f"pc-{number:04d}" / "owner.toml"
        owner = load_owner(path).model_copy(update={"insecure_test_seed": seed})
        speed = owner.speed.model_copy(update={"threads": 1})
        write_text(path, to_toml(owner.model_copy(update={"speed": speed})))
    with ExitStack() as stack:
        started = time.monotonic()
        stack.enter_context(
            process(
                out / "server.log", "server", "start", server, "--bind", "127.0.0.1", "--port", port
            )
        )
        for number in range(pcs):
            folder = out / f"pc-{number:04d}"
            stack.enter_context(
                process(out / f"{folder.name}.log", "client", "start", "--folder", folder)
            )
        wait_for(server / "state" / "running.json")
        print(f"server and {pcs} clients up after {time.monotonic() - started:.1f} s", flush=True)
        do("server", "train", out / "first-job", "--server", server)
    results = Results.load(server / "runs" / "first-job")
    say_where_time_went(results)
    return results


def enroll_all(out: Path, job: Path, pcs: int, port: int) -> None:
    """Make a federation, enroll and admit `pcs` PCs, sign the job."""
    acme, base = out / "acme", []
    do("federation", "init", acme, "--address", f"localhost:{port}")
    do("federation", "invite", acme, "--config", job, "--out", out / "invite.txt")
    if load_settings(job).warm_up.source is not None:
        base = ["--base", str(out / "base")]
        do("federation", "base", job, "--out", out / "base")
    requests = []
    for number in range(pcs):
        name = f"pc-{number:04d}"
        requests.append(out / f"{name}.request")
        do(
            *(
                "client",
                "enroll",
                out / "invite.txt",
                "--data",
                out / f"{name}.parquet",
                "--name",
                name,
            ),
            *("--folder", out / name, "--out", requests[-1], *base),
            quiet=number > 0,
        )
    do("federation", "admit", acme, *requests, "--yes")
    do("federation", "sign", job, "--federation", acme, "--out", out / "first-job")


def give_out_texts(out: Path, config: Path, changes: list[str]) -> Path:
    """One file of texts for each PC, two public ones to measure on, and the job's settings."""
    settings = load_settings(config, changes)
    data = prepare_simulation(settings.data, settings.federation.clients)
    for number, indices in enumerate(data.parts):
        data.train.take(indices).write_parquet(out / f"pc-{number:04d}.parquet")
    data.validation.write_parquet(out / "validation.parquet")
    data.test.write_parquet(out / "test.parquet")
    held_back = settings.data.model_copy(
        update={
            "validation": str((out / "validation.parquet").resolve()),
            "test": str((out / "test.parquet").resolve()),
            "labels": data.labels,
        }
    )
    path = out / "job.toml"
    write_text(path, to_toml(settings.model_copy(update={"data": held_back})))
    return path


def do(*command: object, quiet: bool = False) -> None:
    """Run one `fedaipc` command and show it."""
    words = [str(word) for word in command]
    if not quiet:
        print(f"$ fedaipc {shlex.join(words)}", flush=True)
    out = subprocess.DEVNULL if quiet else None
    done = subprocess.run([*FEDAIPC, *words], stdout=out, check=False)
    if done.returncode:
        sys.exit(done.returncode)


@contextmanager
def process(log: Path, *command: object) -> Iterator[None]:
    """A `fedaipc` command that runs until the end of the block."""
    words = [str(word) for word in command]
    print(f"$ fedaipc {shlex.join(words)} &", flush=True)
    group: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    with log.open("ab") as file:
        child = subprocess.Popen(
            [*FEDAIPC, *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            **group,
        )
    try:
        yield
    finally:
        child.send_signal(getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM))
        try:
            child.wait(40)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(path: Path) -> None:
    end = time.monotonic() + 90
    while not path.is_file():
        if time.monotonic() > end:
            sys.exit(f"{path} does not appear: see the logs beside it")
        time.sleep(0.2)


def say_where_time_went(results: Results) -> None:
    """Seconds by phase: of the first round, and on average of the others."""
    first, *rest = [r for r in results.rounds if not r.void]
    print("\nseconds, first round / each further one (median)")
    for phase, seconds in first.phases.items():
        later = statistics.median(r.phases[phase] for r in rest) if rest else 0.0
        print(f"  {phase:<10} {seconds:8.2f} / {later:.2f}")
    whole = statistics.median(r.seconds for r in rest) if rest else 0.0
    print(f"  {'all':<10} {first.seconds:8.2f} / {whole:.2f}")
    print(json.dumps({"vector_hash": results.model.vector_hash}))


if __name__ == "__main__":
    main()
