"""One meaning, one form: what is read was written just so, and rubbish is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedaipc.errors import EncodingError
from fedaipc.secagg.wire import Reader, Writer, parsed

LABEL = 7
FIELDS = st.lists(
    st.one_of(
        st.tuples(st.just("number"), st.integers(0, 2**64 - 1)),
        st.tuples(st.just("real"), st.floats(allow_nan=False)),
        st.tuples(st.just("string"), st.binary(max_size=40)),
        st.tuples(st.just("text"), st.text(max_size=20)),
        st.tuples(st.just("items"), st.lists(st.binary(min_size=5, max_size=5), max_size=4)),
    ),
    max_size=8,
)


def written(fields: list[tuple[str, Any]]) -> bytes:
    writer = Writer(LABEL)
    for kind, value in fields:
        if kind == "items":
            writer.items(value, 5)
        else:
            getattr(writer, kind)(value)
    return writer.done()


def read(reader: Reader, kinds: list[str]) -> list[tuple[str, object]]:
    return [
        (kind, reader.items(5, 100) if kind == "items" else getattr(reader, kind)())
        for kind in kinds
    ]


@given(FIELDS)
def test_what_was_written_is_read_back(fields: list[tuple[str, Any]]) -> None:
    kinds = [kind for kind, _ in fields]
    assert parsed(written(fields), LABEL, lambda reader: read(reader, kinds)) == fields


@given(FIELDS, st.data())
def test_a_shorter_or_longer_frame_is_refused(
    fields: list[tuple[str, Any]], data: st.DataObject
) -> None:
    content, kinds = written(fields), [kind for kind, _ in fields]
    cut = data.draw(st.integers(0, len(content) - 1))
    for changed in (content[:cut], content + b"\0"):
        with pytest.raises(EncodingError):
            parsed(changed, LABEL, lambda reader: read(reader, kinds))


@given(FIELDS, st.binary(max_size=80))
def test_any_bytes_are_refused_or_are_the_one_form_of_what_they_say(
    fields: list[tuple[str, Any]], content: bytes
) -> None:
    kinds = [kind for kind, _ in fields]
    try:
        found = parsed(written([])[:2] + content, LABEL, lambda reader: read(reader, kinds))
    except EncodingError:
        return
    assert written(found) == written([])[:2] + content or any(
        isinstance(value, float) and math.isnan(value) for _, value in found
    )


def test_label_and_version_must_fit() -> None:
    content = Writer(LABEL).done()
    with pytest.raises(EncodingError, match="frame 7 where frame 8"):
        Reader(content, 8)
    with pytest.raises(EncodingError, match="version 5"):
        Reader(bytes([LABEL, 5]), LABEL)


def test_a_length_is_checked_before_anything_is_taken() -> None:
    with pytest.raises(EncodingError, match="at most 10"):
        Reader(b"\xff\xff\xff\xff").string(10)
    with pytest.raises(EncodingError, match="at most 3"):
        Reader(b"\0\0\0\4" + bytes(4)).items(1, 3)


@pytest.mark.parametrize(("value", "width"), [(-1, 8), (256, 1), (2**64, 8)])
def test_a_number_that_does_not_fit_is_refused(value: int, width: int) -> None:
    with pytest.raises(EncodingError):
        Writer().number(value, width)


def test_a_field_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(EncodingError):
        Writer().fixed(b"abc", 4)


def test_a_text_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(EncodingError, match="UTF-8"):
        Reader(Writer().string(b"\xff").done()).text()
