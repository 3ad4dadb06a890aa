"""Child processes and signals of the Flower engine: find them all, end them all."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import sysconfig
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

import fedaipc
from fedaipc.surroundings import inherited

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

_ENDINGS = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
JOB_MARK = "FEDAIPC_ENGINE_JOB"  # environment variable that every process of a job inherits


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def signal_all(processes: set[psutil.Process], act: Callable[[psutil.Process], None]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            act(process)


def marked(mark: str) -> set[psutil.Process]:
    """Processes of the job that lost their parent between two looks at the tree."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(JOB_MARK) == mark and alive(process):
                found.add(process)
    return found


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def signals_unwind() -> Iterator[None]:
    """Make SIGTERM and a closed terminal raise SystemExit, so that `finally` runs.

    A signal that the caller handles, or ignores as nohup does, stays as it is.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        del frame
        sys.exit(128 + number)

    if not _in_main_thread():
        yield
        return
    free = [number for number in _ENDINGS if signal.getsignal(number) is signal.SIG_DFL]
    for number in free:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in free:
            signal.signal(number, signal.SIG_DFL)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore all that would end this process for the seconds that cleaning up takes."""
    if not _in_main_thread():
        yield
        return
    before = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, *_ENDINGS)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def environment(
    folder: Path, mark: str, import_paths: Sequence[Path], *, cluster: bool
) -> dict[str, str]:
    env = inherited(proxies=False)
    source = Path(fedaipc.__file__).resolve().parent.parent
    paths = [str(path.resolve()) for path in import_paths]
    # An installed package is found anyway, and site-packages must not come before the library.
    if source not in {Path(sysconfig.get_path(k)).resolve() for k in ("purelib", "platlib")}:
        paths.append(str(source))
    paths.append(env.get("PYTHONPATH", ""))
    env.update(
        {
            JOB_MARK: mark,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "PATH": os.pathsep.join([sysconfig.get_path("scripts"), env.get("PATH", "")]),
            "FLWR_HOME": str(folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONUNBUFFERED": "1",
            "NO_COLOR": "1",
        }
    )
    if not cluster:
        env["RAY_TMPDIR"] = str(folder)
    return env
