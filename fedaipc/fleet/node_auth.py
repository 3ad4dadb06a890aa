"""Flower's node signatures, made by the server's clock.

A signature covers a time stamp and nothing else; a SuperLink takes one that is up to 305 s old and
5 s ahead. So each is stamped 150 s into the past, which serves clocks that are 2.5 minutes off
either way; what is further off is learnt from the Date of the refusal.
"""

from __future__ import annotations

import logging
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.primitives.asymmetric import sign_message

from fedaipc import bounds
from fedaipc.errors import AdmissionError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_PAST = timedelta(seconds=150)
_SAME_CLOCK = timedelta(seconds=10)
_UNAUTHORIZED = 401
_log = logging.getLogger(__name__)


class NodeAuth:
    """An interceptor of Flower's fleet client. Raises AdmissionError on an unreadable key."""

    def __init__(self, path: Path) -> None:
        try:
            key = serialization.load_pem_private_key(
                bounds.read_bytes(path, bounds.MAX_KEY), password=None
            )
        except (OSError, ValueError, TypeError) as error:
            raise AdmissionError(
                f"{path}: cannot be read ({type(error).__name__}); enroll this PC again, in a new "
                "folder"
            ) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise AdmissionError(f"{path}: is not a key for Flower's node authentication")
        self._key = key
        self.public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self._offset = timedelta(0)

    def intercept(self, context: Any, call_next: Callable[[Any], Any]) -> Any:
        """Sign a request, and again by the server's clock if it was refused for its time."""
        response = self._signed(context, call_next)
        if response.status_code == _UNAUTHORIZED and self._learn(response):
            response = self._signed(context, call_next)
        return response

    def _signed(self, context: Any, call_next: Callable[[Any], Any]) -> Any:
        # No finer than needed: the server need not learn this PC's clock.
        stamp = (datetime.now(UTC) + self._offset - _PAST).isoformat(timespec="seconds")
        headers = context.request.headers
        headers["flwr-public-key"] = b64encode(self.public).decode()
        headers["flwr-timestamp"] = stamp
        headers["flwr-signature"] = b64encode(sign_message(self._key, stamp.encode())).decode()
        return call_next(context)

    def _learn(self, response: Any) -> bool:
        """Whether the clocks differ by more than they were known to."""
        try:
            there = parsedate_to_datetime(response.headers["date"])
            offset = there - datetime.now(UTC)
        except (KeyError, ValueError, TypeError):
            return False
        if abs(offset - self._offset) < _SAME_CLOCK:
            return False
        _log.warning("this PC's clock is off by %.0f s", -offset.total_seconds())
        self._offset = offset
        return True
