"""Lines of text from bytes: which encoding a file has, and what its bytes are not.

Bytes that an encoding does not know become one lone surrogate, U+DCFF, which no valid text holds:
so they cost the line that they are in and no other.
"""

from __future__ import annotations

import codecs
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MARK = "\udcff"
_ERRORS = "fedaipc-mark"
_SAMPLE = 1 << 20  # bytes of a file that are looked at for a hint
_CANDIDATES = ("utf-8", "cp1252", "cp1250", "cp1251", "shift_jis", "gb18030", "euc_kr", "latin-1")
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

codecs.register_error(_ERRORS, lambda error: (_MARK, error.end))  # type: ignore[attr-defined]


def resolve(path: Path, encoding: str) -> str:
    """`encoding`, or for "auto" what the file's mark says: UTF-16 or UTF-32, otherwise UTF-8."""
    return _resolved(_start(path), encoding)


def lacks_mark(path: Path, encoding: str) -> bool:
    """Whether `encoding` needs a byte order mark, and the file has none. Raises OSError."""
    start = _start(path)
    return _lacks_mark(start, _resolved(start, encoding))


def decode(content: bytes, encoding: str) -> str:
    """All of `content`, without a byte order mark; `encoding` as for `resolve`."""
    own = _resolved(content, encoding)
    if _lacks_mark(content, own):  # Python would guess the order of its bytes
        return _MARK
    return content.decode(own, _ERRORS).removeprefix("\ufeff")


def lines(path: Path, encoding: str) -> Iterator[str]:
    """Lines with their ends (LF, CR LF or CR), as an editor counts them. Raises OSError.

    Where a line end is one byte, bytes are cut into lines first and each line is decoded by
    itself. Half a character at the end of a line, or a shift that is never undone, then affects
    that line only.
    """
    first = True
    for line in _by_line(path, encoding) if _has_plain_ends(encoding) else _whole(path, encoding):
        yield line.removeprefix("\ufeff") if first else line
        first = False


def is_valid(text: str) -> bool:
    """False with half a surrogate pair, which no file or tokenizer accepts (JSON can write one)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def readable_as(path: Path) -> tuple[str, ...]:
    """Encodings under which the start of the file is text, likely ones first. Raises OSError.

    One of them is latin-1 for any bytes: which is right only a reader of the text can tell.
    """
    with path.open("rb") as file:
        content = file.read(_SAMPLE)
    start = content[:4096]
    zeros = start.count(0)
    if zeros > len(start) // 4:  # letters with one byte of two, or three of four, that are zero
        width = 4 if zeros > len(start) * 5 // 8 else 2
        little = start[width - 1 :: width].count(0) > start[::width].count(0)
        return (f"utf-{8 * width}-{'le' if little else 'be'}",)
    content = content[: content.rfind(b"\n") + 1] or content  # no half character at the end
    return tuple(name for name in _CANDIDATES if _MARK not in content.decode(name, _ERRORS))


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _resolved(start: bytes, encoding: str) -> str:
    return (_marked(start) or "utf-8") if encoding == "auto" else encoding


def _lacks_mark(start: bytes, encoding: str) -> bool:
    name = codecs.lookup(encoding).name
    return bool(start) and name in dict(_BOMS).values() and _marked(start) != name


def _marked(start: bytes) -> str | None:
    """The encoding whose mark stands at the start."""
    return next((name for mark, name in _BOMS if start.startswith(mark)), None)


def _by_line(path: Path, encoding: str) -> Iterator[str]:
    with path.open("rb") as file:
        for raw in file:
            line = raw.decode(encoding, _ERRORS)
            if "\r" in line[:-2]:
                yield from re.split(r"(?<=\r)(?!\n)(?=.)", line, flags=re.DOTALL)
            else:
                yield line


def _whole(path: Path, encoding: str) -> Iterator[str]:
    with path.open(encoding=encoding, errors=_ERRORS, newline="") as file:
        yield from file


def _has_plain_ends(encoding: str) -> bool:
    return b"a\n".decode(encoding, _ERRORS) == "a\n"
