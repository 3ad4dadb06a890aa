"""Exchanges over stock Flower, started as its documents say: for fleet.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from scripts.fleet_demo import free_port  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

EXCHANGES = 6
ENVIRONMENT = {
    **os.environ,
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


def stock_exchanges(out: Path, certificates: Path, pcs: int) -> list[float]:
    """Seconds of each exchange with `pcs` SuperNodes, over TLS and with node authentication.

    `certificates` is a server's folder, whose certificate is for localhost; logs go to `out`.
    """
    result, home, programs = out / "stock.json", out / "home", Path(sys.executable).parent
    home.mkdir()
    port = free_port()
    address, authority = f"localhost:{port}", str(certificates / "authority.pem")
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "own"\n\n[superlink.own]\naddress = "{address}"\n'
        f'root-certificates = "{authority}"\n',
        encoding="utf-8",
    )
    environment = {"FLWR_HOME": str(home), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}

    def flwr(*words: object) -> None:
        done = subprocess.run(
            [str(programs / "flwr"), *map(str, words)],
            env={**ENVIRONMENT, **environment}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)

    def start(name: str, program: str, *words: object) -> None:
        command = [str(programs / program), *map(str, words)]
        stack.enter_context(running(out / f"{name}.log", command, env=environment))

    with ExitStack() as stack:
        start(
            "superlink", "flower-superlink", "--host", "localhost", "--port", port,
            "--ssl-ca-certfile", authority, "--ssl-certfile", certificates / "server.pem",
            "--ssl-keyfile", certificates / "server.key", "--enable-supernode-auth",
            "--database", out / "stock.db",
        )  # fmt: skip
        await_port(port)
        for number in range(pcs):
            key, public = out / f"stock-{number}.key", out / f"stock-{number}.pub"
            make_keys(key, public)
            flwr("supernode", "register", public, "own")
            start(
                f"stock-{number}", "flower-supernode", "--superlink", address,
                "--root-certificates", authority, "--auth-supernode-private-key", key,
                "--port", free_port(),
            )  # fmt: skip
        config = f'out="{result}" pcs={pcs} exchanges={EXCHANGES + 1}'
        flwr("run", HERE / "stock", "own", "--run-config", config)
        end = time.monotonic() + 900
        while not result.is_file():
            if time.monotonic() > end:
                raise SystemExit(f"stock Flower does not finish: see the logs in {out}")
            time.sleep(0.5)
        time.sleep(1)
    return [float(one) for one in json.loads(result.read_text("utf-8"))]


@contextmanager
def running(log: Path, command: list[str], **options: Any) -> Iterator[None]:
    """A process, and what it started, until the end of the block."""
    with log.open("ab") as file:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            env={**ENVIRONMENT, **options.pop("env", {})}, **options,
        )  # fmt: skip
    try:
        yield
    finally:
        below = psutil.Process(child.pid).children(recursive=True) if child.poll() is None else []
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        for process in below:
            if process.is_running():
                process.kill()


def make_keys(key: Path, public: Path) -> None:
    """As Flower's documents want a node's."""
    private = ec.generate_private_key(ec.SECP384R1())
    openssh, plain = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, openssh, plain))
    public.write_bytes(
        private.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
    )


def await_port(port: int) -> None:
    import socket

    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise SystemExit("the SuperLink does not start")
