"""Packages that only some parts of fedaipc need, and the extra of pyproject.toml that brings each.

No module imports one of them before it has called `need`, and then only where it is used.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec

from fedaipc.errors import MissingExtra

EXTRAS = {
    "anyio": "fleet",
    "datasets": "hub",
    "h11": "fleet",
    "httpx": "fleet",
    "optuna": "lab",
    "pandas": "lab",
    "ray": "flower",
    "tensorboard": "tensorboard",
    "uvicorn": "fleet",
}


def need(what: str, *packages: str) -> None:
    """Raise MissingExtra where a package that `what` needs is not installed. It imports none of
    them.
    """
    for package in packages:
        if find_spec(package) is None:
            extra = EXTRAS[package]
            raise MissingExtra(f"{what} needs the extra [{extra}]: {_remedy(extra)}")


def _remedy(extra: str) -> str:
    try:  # pip notes where it had a package from, if that was not an index
        source = distribution("fedaipc").read_text("direct_url.json")
    except PackageNotFoundError:
        source = "a clone"
    if source is None:
        return f"pip install 'fedaipc[{extra}]'"
    return f"pip install '.[{extra}]' in your clone"
