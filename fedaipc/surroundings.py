"""What a program of fedaipc takes over from its caller, and hands to its own processes.

A working directory may hold anything: a file `flwr.py` or `multiprocessing.py` there must not run.
An environment may hold what was meant for other programs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
# Flower reads many settings of its own, on which its messages and its secrecy depend.
_FLOWER = "FLWR_"
_PYTHON = ("PYTHONSTARTUP", "PYTHONINSPECT")  # for people at a prompt


def settle() -> None:
    """At the start of a program, before it imports libraries: take the harmless part only."""
    path = os.environ.get("PYTHONPATH", "")
    if path and "" in path.split(os.pathsep):  # as in `:/opt/lib`: Python reads "here"
        here = Path.cwd()
        sys.path[:] = [entry for entry in sys.path if entry and Path(entry) != here]
    wanted = inherited()
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    os.environ.update(wanted)


def inherited(*, proxies: bool = True) -> dict[str, str]:
    """The environment for our own processes, and all that they start in turn."""
    env = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_FLOWER)
        and name not in _PYTHON
        and (proxies or name.lower() not in _PROXIES)
    }
    env["PYTHONSAFEPATH"] = "1"  # nothing is imported from the working directory
    path = [entry for entry in env.pop("PYTHONPATH", "").split(os.pathsep) if entry]
    if path:
        env["PYTHONPATH"] = os.pathsep.join(path)
    return env
