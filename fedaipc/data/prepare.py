"""From one source to what a simulation needs: label list, splits, one part per PC."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedaipc.config import ByColumn
from fedaipc.data.partition import partition
from fedaipc.data.reading import label_hints, label_name, shown_names
from fedaipc.data.sources import read_records
from fedaipc.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    from fedaipc.config import DataSettings
    from fedaipc.data.records import Records


_LARGEST_SPLIT = 2000  # texts: the standard error of an accuracy is then about one point
_MAX_LABELS = 1000
_WHOLE_NUMBER = re.compile(r"-?\d{1,18}")


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class HeldBack:
    """What the model is measured on. No text is in two sets."""

    validation: Records
    test: Records
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, repr=False, kw_only=True)
class SimulatedData(HeldBack):
    """And what PCs are given: `parts[i]` holds PC i's indices into `train`."""

    train: Records
    parts: tuple[npt.NDArray[np.int64], ...]


def prepare_held_back(settings: DataSettings) -> HeldBack:
    """The sets of `data.validation` and `data.test`, where nobody here has what PCs train on.

    Raises DataError: one of them is not given or cannot be used, one class only.
    """
    missing = "validation" if settings.validation is None else "test"
    if settings.validation is None or settings.test is None:
        raise DataError(
            f"data.{missing} is not given: a real federation is measured on public texts; name "
            "two files of them in data.validation and data.test"
        )
    notes: list[str] = []
    given = _read_given(settings, notes)
    labels = label_list(given["validation"], settings.labels, what=_named(settings, "validation"))
    label_list(given["test"], labels, what=_named(settings, "test"))
    return HeldBack(
        validation=given["validation"], test=given["test"], labels=labels, notes=tuple(notes)
    )


def prepare_simulation(settings: DataSettings, pcs: int) -> SimulatedData:
    """Read, de-duplicate, split, partition; the same result for the same settings.

    `limit` samples the source first. Files given for validation and test stay as they are,
    except that a text in both stays in test only. Their texts are dropped from the source.

    Raises DataError: unusable source, one class only, too few records for the sets or PCs.
    """
    group = settings.client_column  # read for any partition: splits keep its shares
    notes: list[str] = []
    name = _named(settings, "source")
    source = _read(settings, settings.source, group, notes)
    if settings.limit is not None and settings.limit < len(source):
        kept = np.random.default_rng([settings.split_seed, 2]).permutation(len(source))
        source = source.take(np.sort(kept[: settings.limit]))
        notes.append(f"a random sample of {settings.limit:,} records")
    given = _read_given(settings, notes)
    train, dropped = deduplicate(source, *given.values())
    if dropped:
        notes.append(f"{dropped:,} duplicates and contradictions dropped")
    if not len(train):
        raise DataError(
            f"{name}: nothing is left once duplicates and the texts of data.validation and "
            "data.test are dropped"
        )
    labels = label_list(train, settings.labels, what=name)
    notes += label_hints(train.labels)
    for key, records in given.items():
        label_list(records, labels, what=_named(settings, key))
    sizes = _split_sizes(
        settings, len(train), [n for n in ("test", "validation") if n not in given]
    )
    for number, (key, size) in enumerate(sizes.items()):
        train, given[key] = _split_off(train, size, seed=[settings.split_seed, 3, number])
    values = len(set(train.groups or ()))
    if isinstance(settings.partition, ByColumn) and values < pcs:
        notes.append(
            f"data.client_column = {group} has {values:,} values for {pcs:,} PCs: records of one "
            "value lie on several PCs; where a value is a person, they cost that person more"
        )
    return SimulatedData(
        train=train,
        validation=given["validation"],
        test=given["test"],
        labels=labels,
        parts=partition(train, settings, pcs),
        notes=tuple(notes),
    )


def label_list(
    records: Records, given: tuple[str, ...] | None, what: str = "data.source"
) -> tuple[str, ...]:
    """The public label list: as given, otherwise all labels present, numbers in numeric order.

    Raises DataError on a single class, where a record's label is not in the given list, or where
    two names of that list are one label, as 1 and 1.0.
    """
    present = set(records.labels)
    if given is not None:
        listed = tuple(name for label in given if (name := label_name(label)) is not None)
        if len(set(listed)) < len(given):
            raise DataError(
                "data.labels: each must be a name, and 1 and 1.0, or True and true, "
                "are the same one"
            )
        if not present <= set(listed):
            raise DataError(
                f"{what}: holds labels that are not in the label list; complete data.labels with "
                f"{shown_names(sorted(present - set(listed)))}"
            )
        return listed
    if len(present) < 2:
        raise DataError(f"{what}: all records have one label; a classifier needs at least two")
    if len(present) > _MAX_LABELS:
        raise DataError(
            f"{what}: more than {_MAX_LABELS:,} different labels; is data.label_column right?"
        )
    if all(_WHOLE_NUMBER.fullmatch(label) for label in present):
        return tuple(sorted(present, key=lambda label: (int(label), label)))
    return tuple(sorted(present))


def deduplicate(records: Records, *held_back: Records) -> tuple[Records, int]:
    """`records` with each text once, and how many were dropped.

    The first of equal texts stays; a text with two labels goes altogether, and so does one that
    a set held back for evaluation contains. Equal means equal after NFKC, case folding and
    joining of white space.
    """
    labels: dict[str, set[str]] = defaultdict(set)
    keys = [_key(text) for text in records.texts]
    for key, label in zip(keys, records.labels, strict=True):
        labels[key].add(label)
    seen = {_key(text) for other in held_back for text in other.texts}
    kept = []
    for index, key in enumerate(keys):
        if key not in seen and len(labels[key]) == 1:
            kept.append(index)
        seen.add(key)
    return records.take(kept), len(records) - len(kept)


def _key(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _read(settings: DataSettings, source: str, group: str | None, notes: list[str]) -> Records:
    """All records of `source`, or with `skip_unusable` those that can be used, with a note."""
    reading = read_records(source, settings, group_column=group, labels=settings.labels)
    records = reading.some() if settings.skip_unusable else reading.all()
    if reading.dropped:
        notes.append(f"left out: {reading.where}: {reading.left_out_text()}")
    if reading.quoted_hint:
        notes.append(f"{reading.where}: {reading.quoted_hint}")
    return records


def _named(settings: DataSettings, key: str) -> str:
    """A source, by its key and where it is."""
    return f"data.{key} = {getattr(settings, key)}"


def _read_given(settings: DataSettings, notes: list[str]) -> dict[str, Records]:
    """The test and validation sets that have files of their own; no text is in both."""
    given = {
        name: _read(settings, source, None, notes)
        for name, source in (("test", settings.test), ("validation", settings.validation))
        if source is not None
    }
    if len(given) == 2:
        in_test = {_key(text) for text in given["test"].texts}
        texts = given["validation"].texts
        kept = [index for index, text in enumerate(texts) if _key(text) not in in_test]
        if not kept:
            raise DataError("data.validation: data.test holds all its texts; give two sets")
        given["validation"] = given["validation"].take(kept)
    return given


def _split_sizes(settings: DataSettings, total: int, names: list[str]) -> dict[str, int]:
    """How many of `total` records to hold back for each of `names`, at most a third for one."""
    wanted = {"test": settings.test_size, "validation": settings.validation_size}
    usual = min(_LARGEST_SPLIT, max(1, total // 10))
    sizes = {}
    for name in names:
        sizes[name] = wanted[name] or usual
        if sizes[name] > total // 3:
            cure = f"set data.{name}_size to {total // 3:,} or less" if total >= 3 else "add more"
            raise DataError(
                f"{_named(settings, 'source')}: {total:,} different records are too few to hold "
                f"{sizes[name]:,} back for {name}; {cure}"
            )
    return sizes


def _split_off(records: Records, size: int, seed: list[int]) -> tuple[Records, Records]:
    """(rest, `size` records), the latter with the same share of each label (and group)."""
    random = np.random.default_rng(seed)
    groups = records.groups or ("",) * len(records)
    strata: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, stratum in enumerate(zip(groups, records.labels, strict=True)):
        strata[stratum].append(index)
    # A random order within each stratum, then evenly spaced places over all strata: each gets
    # its share to within one record, however many strata there are.
    ordered = np.concatenate([random.permutation(strata[s]) for s in sorted(strata)])
    chosen = ordered[((np.arange(size) + random.random()) * len(ordered) / size).astype(int)]
    is_chosen = np.zeros(len(records), dtype=bool)
    is_chosen[chosen] = True
    return records.take(np.flatnonzero(~is_chosen)), records.take(np.flatnonzero(is_chosen))
