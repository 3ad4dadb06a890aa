"""Kinds of data sources by the word before their colon, as in "hf:imdb"; others can add theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from fedaipc.config.section import load_extensions
from fedaipc.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence


class DataSource(Protocol):
    """Reads what follows the colon: a column of values for each of the wanted `columns`.

    The first is the text, the second the label; a third, where there is one, says whose the record
    is. Raise DataError with one line where they cannot be read; records that cannot be used (a text
    that is empty, a label that is missing) are found by fedaipc.
    """

    def __call__(self, name: str, columns: Sequence[str]) -> Sequence[Iterable[object]]: ...


SOURCES: dict[str, DataSource] = {}


def register_source(scheme: str) -> Callable[[DataSource], DataSource]:
    """Let `scheme:NAME` be read by a function; to be used as a decorator.

    Raises ConfigError where the scheme is one letter (a drive of Windows) or taken.
    """
    if len(scheme) < 2 or not scheme.isidentifier():
        raise ConfigError(f"{scheme}: name a data source by two letters or more")

    def add(source: DataSource) -> DataSource:
        from fedaipc.data import sources  # noqa: F401 - registers those of fedaipc first

        taken = SOURCES.get(scheme)
        if taken is not None and _place(taken) != _place(source):
            raise ConfigError(f"{scheme}: {_place(taken)} reads these already; choose another")
        SOURCES[scheme] = source
        return source

    return add


def find_source(source: str) -> tuple[DataSource, str] | None:
    """Who reads `source`, and the name that it stands for; None where it has no known scheme."""
    scheme, colon, name = source.partition(":")
    if not colon:
        return None
    if scheme not in SOURCES:
        load_extensions()
    return (SOURCES[scheme], name) if scheme in SOURCES else None


def _place(source: object) -> str:
    return f"{getattr(source, '__module__', '')}.{getattr(source, '__qualname__', source)}"
