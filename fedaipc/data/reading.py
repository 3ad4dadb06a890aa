"""What reading a source gives: the records that can be used, and a summary of what was left out.

Each record is judged by itself. The caller decides what follows from the summary: a simulation
stops unless told to leave such records out, an owner is told at enrollment, a round continues
without them.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING

from fedaipc.config import DataSettings, TextSource
from fedaipc.data.encoding import is_valid
from fedaipc.data.records import Records
from fedaipc.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    Place = int | str  # a line of a text file, a row of a table, the name of a file in a folder

_MAX_PLACES = 10
_MAX_NAMES = 10
_LONGEST_NAME = 40  # characters
_BOOLEANS = {"True": "true", "TRUE": "true", "False": "false", "FALSE": "false"}


class Fault(StrEnum):
    """Why a record cannot be used, in the order in which it is looked for."""

    FILE = "a file that cannot be read"
    ENCODING = "bytes that are not valid in this encoding"
    QUOTATION = "an unclosed quotation mark, or one inside a quoted text that is not doubled"
    LONG = "a text above 10 million characters"
    FEW = "too few columns"
    MANY = "more columns than the first row (put texts that hold the delimiter in quotation marks)"
    JSON = "not one JSON object on one line"
    KEY = "a key that is missing"
    TEXT = "a text that is empty or not a text"
    LIST = "a label that is a list or an object (a text has one label here)"
    LABEL = "a label that is missing"
    GROUP = "a partition column that is empty"
    UNKNOWN = "a label that is not in the label list"


@dataclass(slots=True, kw_only=True, repr=False)  # not frozen, as `csv_lines.Line`
class Row:
    """A record before it was judged."""

    text: object
    label: object
    group: object = ""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Dropped:
    """Records that were left out for one reason: how many, and the first ten places.

    `names` are labels, where they are what is wrong and no texts of another column; `almost` has
    for each of them the listed label that it differs from only in case or spaces, or "".
    """

    fault: Fault
    count: int
    places: tuple[Place, ...]
    names: tuple[str, ...] = ()
    almost: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Reading:
    """`where` is the source in words, `unit` what `places` count: lines, rows or files.

    `how` is what was asked for, and says how advice is given. `advice` is what may make more
    records usable; `missing` names a column that no record has. `quoting` and `encoding` are the
    file's own, where "auto" was asked for. `swallowing` are places of records that hold lines which
    look like records themselves; `quoted` counts texts in quotation marks which were taken as text.
    """

    where: str
    unit: str
    records: Records
    how: TextSource = field(default_factory=TextSource)
    dropped: tuple[Dropped, ...] = ()
    advice: str = ""
    missing: str = ""
    encoding: str = "auto"
    quoting: str = "auto"
    swallowing: tuple[Place, ...] = ()
    quoted: int = 0

    @property
    def left_out(self) -> int:
        return sum(dropped.count for dropped in self.dropped)

    def left_out_text(self) -> str:
        """What was left out, in one line; it names labels and places, and no text."""
        kinds = "; ".join(
            f"{dropped.fault} ({_places(self.unit, dropped)}{_names(dropped)})"
            for dropped in self.dropped
        )
        total = len(self.records) + self.left_out
        advice = f"; {self.advice}" if self.advice else ""
        return f"{self.left_out:,} of {total:,} records cannot be used: {kinds}{advice}"

    def all(self) -> Records:
        """The records. Raises DataError unless there are some and each can be used."""
        used = len(self.records)
        if self.dropped and used:
            or_skip = ""
            if self.left_out <= used:  # otherwise the few that are left would not be a fair sample
                or_skip = f", or leave them out with {DataSettings.remedy(skip_unusable=True)}"
            raise DataError(f"{self.where}: {self.left_out_text()}; mend them{or_skip}")
        return self.some()

    def some(self) -> Records:
        """The records. Raises DataError where no record can be used, or where it is not clear
        which.
        """
        if self.swallowing:
            more = len(self.swallowing) - 1
            raise DataError(
                f"{self.where}: the quoted text that begins in {self.unit} {self.swallowing[0]}"
                f"{f' (and {more:,} more)' if more else ''} spans lines that look like records. "
                "If its quotation mark is missing, add it; if each line is a record, give "
                f"{self.how.remedy(quoting='line')}; if the text really spans several lines, give "
                f"{self.how.remedy(quoting='csv')}"
            )
        if not len(self.records):
            outcome = self.left_out_text() if self.dropped else "holds no records"
            raise DataError(f"{self.where}: {self.missing or outcome}")
        return self.records

    @property
    def quoted_hint(self) -> str:
        """A note if most texts stand in quotation marks that were taken as text, otherwise ""."""
        if self.quoted * 2 <= len(self.records):
            return ""
        return (
            f"{self.quoted:,} texts keep the quotation marks that they stand in; "
            f"{self.how.remedy(quoting='csv')} takes them off"
        )


class Collector:
    """Judges rows one by one, each by itself."""

    def __init__(self, labels: Collection[str] | None, *, grouped: bool) -> None:
        """`labels` are the only ones that count, None for any."""
        self._known = None if labels is None else {label_name(label) for label in labels}
        self._alike = {_folded(label): label for label in self._known or () if label is not None}
        self._grouped = grouped
        self._texts: list[str] = []
        self._labels: list[str] = []
        self._groups: list[str] = []
        self._seen: set[str] = set()
        self._places: dict[Fault, list[Place]] = {}
        self._counts: Counter[Fault] = Counter()
        self._unknown: dict[str, None] = {}

    def add(self, place: Place, row: Row | Fault) -> bool:
        """Whether the record can be used."""
        fault = row if isinstance(row, Fault) else self._judge(row)
        if fault is not None:
            self._counts[fault] += 1
            places = self._places.setdefault(fault, [])
            if len(places) < _MAX_PLACES:
                places.append(place)
        return fault is None

    def knows(self, label: str) -> bool:
        """Whether it is one of the labels that count, or of those seen so far."""
        name = label_name(label)
        return name in (self._known or ()) or name in self._seen

    def records(self) -> Records:
        groups = tuple(self._groups) if self._grouped else None
        return Records(tuple(self._texts), tuple(self._labels), groups)

    def dropped(self) -> tuple[Dropped, ...]:
        names = self._names()
        return tuple(
            Dropped(
                fault=fault,
                count=self._counts[fault],
                places=tuple(self._places[fault]),
                names=names if fault is Fault.UNKNOWN else (),
                almost=tuple(self._alike.get(_folded(name), "") for name in names),
            )
            for fault in Fault
            if fault in self._counts
        )

    def _names(self) -> tuple[str, ...]:
        """Unknown labels that may be shown: few and short, and not most of a column of texts."""
        count, names = self._counts[Fault.UNKNOWN], tuple(self._unknown)
        if not _few_and_short(names):
            return ()
        repeat = 2 * len(names) <= count or all(_folded(name) in self._alike for name in names)
        return names if repeat or count <= len(self._texts) else ()

    def _judge(self, row: Row) -> Fault | None:
        text, label = row.text, label_name(row.label)
        group = label_name(row.group) if self._grouped else ""
        for value in (text, label, group):
            if isinstance(value, str) and not is_valid(value):
                return Fault.ENCODING
        if not isinstance(text, str) or not text.strip():
            return Fault.TEXT
        if isinstance(row.label, list | dict):
            return Fault.LIST
        if label is None:
            return Fault.LABEL
        if group is None:
            return Fault.GROUP
        if self._known is not None and label not in self._known:
            if len(self._unknown) <= _MAX_NAMES:
                self._unknown[label] = None
            return Fault.UNKNOWN
        self._texts.append(text.strip())
        self._labels.append(label)
        self._seen.add(label)
        self._groups.append(group)
        return None


def label_name(value: object) -> str | None:
    """A label or group as text, None where missing: 1, 1.0, "1" and "1.0" are one name, and so are
    true, "True" and "TRUE".
    """
    if value is None or isinstance(value, bytes | list | dict):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    text = str(value)
    return _short_name(text) if len(text) <= _LONGEST_NAME else _name_of(text)


def _name_of(text: str) -> str | None:
    text = text.strip()
    if text in ("", "nan", "NaN"):  # how a missing number reads; "none" may be a class
        return None
    whole, point, zeros = text.partition(".")
    if point and whole.removeprefix("-").isdecimal() and zeros and not zeros.strip("0"):
        return whole
    return _BOOLEANS.get(text, text)


_short_name = lru_cache(maxsize=1024)(
    _name_of
)  # most labels are many rows'; a text is kept nowhere


def label_hints(labels: Iterable[str]) -> tuple[str, ...]:
    """What looks odd about labels: near-equal ones, lists, classes of a single text."""
    counts = Counter(labels)
    hints: list[str] = []
    alike: dict[str, list[str]] = {}
    for label in sorted(counts):
        alike.setdefault(_folded(label), []).append(label)
    near = [names for names in alike.values() if len(names) > 1]
    if near:
        shown = "; ".join(shown_names(names) for names in near[:_MAX_NAMES])
        hints.append(f"labels that differ only in case or spaces count as different: {shown}")
    lists = [label for label in counts if label[0] == "[" and label[-1] == "]"]
    if lists:
        hints.append(f"labels that read like lists count as one name each: {shown_names(lists)}")
    single = sorted(label for label, count in counts.items() if count == 1)
    if single and len(counts) > 1:
        hints.append(
            f"{len(single):,} of {len(counts):,} labels have one text only, too few to learn or "
            "measure"
            + (f": {shown_names(single)}" if _few_and_short(single) else "; is the column right?")
        )
    return tuple(hints)


def _few_and_short(names: Sequence[str]) -> bool:
    """Whether they may be shown: otherwise they may be texts of another column."""
    return len(names) <= _MAX_NAMES and all(len(name) <= _LONGEST_NAME for name in names)


def shown_names(names: Iterable[str]) -> str:
    """At most ten, each short and in quotation marks, control characters written out."""
    listed = list(names)
    shown = [
        repr(name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}...")
        for name in listed[:_MAX_NAMES]
    ]
    return ", ".join(shown) + (", ..." if len(listed) > _MAX_NAMES else "")


def _places(unit: str, dropped: Dropped) -> str:
    names = [f"{p}" if isinstance(p, int) else repr(p) for p in dropped.places]
    more = dropped.count - len(names)
    noun = unit if dropped.count == 1 else f"{unit}s"
    return f"{noun} {', '.join(names)}" + (f" and {more:,} more" if more else "")


def _names(dropped: Dropped) -> str:
    if not dropped.names:
        return ""
    shown = (
        shown_names([name]) + (f" (almost the same as {near!r})" if near else "")
        for name, near in zip(dropped.names, dropped.almost, strict=True)
    )
    return f": {', '.join(shown)}"


def _folded(label: str) -> str:
    return "".join(label.split()).casefold()
