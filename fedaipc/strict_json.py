"""JSON that means one thing: for all that is signed or hashed, or that a stranger hands in.

The standard parser takes the last of two equal keys, where another reader may take the first; it
takes NaN and numbers that become infinite, and text of any size and depth. Here each of these is an
error, which costs no more than reading the text once.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES = 1 << 20
_MAX_DEPTH = 32
_BYTES_OF_VALUE = 16  # brackets and commas alone take 30 times their size in memory


def parse(content: bytes | str, *, max_bytes: int = MAX_BYTES) -> Any:
    """The value that `content`, UTF-8 of at most `max_bytes`, spells.

    Raises ValueError with a short reason: too large, too many values, not JSON, two equal keys in
    one object, a number that is not finite, nested too deep, half of a surrogate pair.
    """
    size = len(content) if isinstance(content, bytes) else len(content.encode("utf-8", "replace"))
    if size > max_bytes:
        raise ValueError(f"larger than {max_bytes:,} bytes")
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        if sum(map(text.count, ",[{")) > max_bytes // _BYTES_OF_VALUE:
            raise ValueError("too many values")
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_not_finite, parse_float=_finite
        )
        _check(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON (line {error.lineno}, column {error.colno})") from None
    except UnicodeError:
        raise ValueError("not UTF-8") from None
    except RecursionError:
        raise ValueError("nested too deep") from None
    return value


def load(path: Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """What the file at `path` holds; no more of it is read than may be there.

    Raises OSError, or ValueError as `parse`.
    """
    with path.open("rb") as file:
        return parse(file.read(max_bytes + 1), max_bytes=max_bytes)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the same key stands twice in one object")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number that is not finite")
    return number


def _not_finite(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _check(value: Any) -> None:
    """Depth, and that each string can be written again."""
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        below: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                for key in one:
                    key.encode()
                below.extend(one.values())
            elif isinstance(one, list):
                below.extend(one)
            elif isinstance(one, str):
                one.encode()
        level = below
        if not level:
            return
    raise ValueError("nested too deep")
