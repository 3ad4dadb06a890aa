"""The weighted mean of updates by an exact sum: it does not depend on the order of arrival."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedaipc.errors import EncodingError

_SCALE = 2.0**32  # resolution 2^-32, about what float32 keeps of a value of 0.001
_CHUNK = 1 << 16


class ExactSum:
    """Adds float32 vectors of shape (size,) as 64-bit integers; memory does not grow."""

    def __init__(self, size: int) -> None:
        self._total = np.zeros(size, dtype=np.int64)
        self._weight = 0
        self._bound = 0.0  # no entry of the total can be larger than this

    def add(self, update: npt.NDArray[np.float32], weight: int) -> None:
        """Add `update` times a whole public `weight`.

        Raises EncodingError, and leaves the sum as it was: wrong size, a value that is not
        finite, or so large that the sum could overflow.
        """
        if update.shape != self._total.shape:
            raise EncodingError("an update has the wrong size")
        largest = float(np.abs(update).max(initial=0.0))  # NaN and infinity come through max
        bound = self._bound + (largest * _SCALE + 1) * weight
        if not bound < 2.0**62:
            raise EncodingError("an update is not finite or too large to be summed exactly")
        for start in range(0, len(update), _CHUNK):
            part = update[start : start + _CHUNK].astype(np.float64)
            part *= _SCALE
            self._total[start : start + _CHUNK] += np.rint(part).astype(np.int64) * weight
        self._weight += weight
        self._bound = bound

    def mean(self) -> npt.NDArray[np.float32]:
        """Weighted mean, shape (size,). Raises EncodingError where nothing was added."""
        if not self._weight:
            raise EncodingError("there is no update to average")
        return (self._total / (_SCALE * self._weight)).astype(np.float32)
