"""JSON that means one thing, and costs no more than it may."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedaipc
from fedaipc import strict_json

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(_VALUES)
def test_what_json_spells_once_is_read_as_the_standard_parser_does(value: Any) -> None:
    text = json.dumps(value)
    assert strict_json.parse(text) == value
    assert strict_json.parse(text.encode()) == value


@given(st.binary(max_size=60))
def test_bytes_are_a_value_or_one_short_reason(content: bytes) -> None:
    reason, kind = "a value", ValueError
    try:
        strict_json.parse(content)
    except ValueError as error:
        reason, kind = str(error), type(error)
    assert 3 < len(reason) < 80
    assert kind is ValueError


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"steps": 1, "steps": 1000}', "twice"),
        ('[{"a": {"b": 1, "\\u0062": 2}}]', "twice"),
        ("NaN", "not a JSON number"),
        ('{"clip_norm": -Infinity}', "not a JSON number"),
        ("[1e999]", "not finite"),
        ("[" * 40 + "]" * 40, "too deep"),
        ("[" * 60_000, "too deep|not JSON"),
        ("[" * 70_000, "too many values"),
        ("[" + "0," * 70_000 + "0]", "too many values"),
        ('"' + "x" * (1 << 20) + '"', "larger than"),
        ('["\\ud800"]', "UTF-8"),
        ('{"\\udfff": 1}', "UTF-8"),
        (b'"\xff"', "UTF-8"),
        (b"\xef\xbb\xbf1", "not JSON"),
        ("1" * 5000, "digits"),
        ("{", "line 1, column"),
        ("", "line 1, column"),
    ],
)
def test_what_two_readers_could_read_in_two_ways_is_refused(text: str | bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        strict_json.parse(text)


def test_no_more_of_a_file_is_read_than_may_be_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="larger than 1,000 bytes"):
        strict_json.load(Path("/dev/zero"), max_bytes=1000)
    (tmp_path / "a.json").write_text("[1]", encoding="utf-8")
    assert strict_json.load(tmp_path / "a.json", max_bytes=100) == [1]


def test_nothing_else_of_the_package_reads_json_with_another_parser() -> None:
    """But rows of an owner's own data, which are neither signed nor hashed."""
    root = Path(fedaipc.__file__).parent
    loose = re.compile(r"json\.loads?\(|_validate_json\(")
    found = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if loose.search(line) and "strict_json.load(" not in line
    }
    assert found == {"data/sources.py", "strict_json.py"}
