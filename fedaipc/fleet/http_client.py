"""A PC's HTTP to a server that it does not trust: no redirect, no unpacking, no endless answer.

Flower's own client follows redirects to anywhere, which would let a server have its PCs ask other
machines of their networks, and unpacks a thousandfold what a server compressed.
"""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING

import httpx

from fedaipc.errors import AdmissionError

if TYPE_CHECKING:
    from collections.abc import Iterator

_LARGEST = 9_000_000  # bytes of an answer; Flower sends arrays in chunks of 5 MiB
_GRACE = 30.0  # s that an answer may take,
_RATE = 16 * 2**10  # and how many bytes earn another second
_TIMEOUT = 30.0  # s for a connection, and for any piece of an answer


def bounded_client(authority: bytes, proxy: httpx.Proxy | None = None) -> httpx.Client:
    """For calls to a server whose certificate is of `authority` (PEM) alone, through `proxy`.

    Nothing is read from the environment: no proxy, and no file of certificates. Raises
    AdmissionError where `authority` is not a certificate.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=authority.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise AdmissionError(
            f"the federation's TLS authority cannot be read ({error}); run `fedaipc client leave`, "
            "and enroll again in the same folder"
        ) from None
    inner = httpx.HTTPTransport(verify=context, trust_env=False, proxy=proxy)
    return httpx.Client(
        transport=BoundedTransport(inner), timeout=_TIMEOUT, trust_env=False, follow_redirects=False
    )


class BoundedTransport(httpx.BaseTransport):
    """Raises httpx.RemoteProtocolError on what no honest server sends, ReadTimeout on slow ones."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """One answer whose body is read within the limits."""
        request.headers["accept-encoding"] = "identity"
        response = self._inner.handle_request(request)
        if response.is_redirect or "content-encoding" in response.headers:
            response.close()
            raise httpx.RemoteProtocolError("a redirect or a packed answer, as no server sends")
        assert isinstance(response.stream, httpx.SyncByteStream)  # noqa: S101 - of a sync transport
        response.stream = _Counted(response.stream)
        return response

    def close(self) -> None:
        """Close it and its connections."""
        self._inner.close()


class _Counted(httpx.SyncByteStream):
    def __init__(self, inner: httpx.SyncByteStream) -> None:
        self._inner = inner

    def __iter__(self) -> Iterator[bytes]:
        size, started = 0, time.monotonic()  # from the head on: sending may have taken long
        for part in self._inner:
            size += len(part)
            if size > _LARGEST:
                raise httpx.RemoteProtocolError("an answer without end")
            if time.monotonic() - started > _GRACE + size / _RATE:
                raise httpx.ReadTimeout("an answer that drips")
            yield part

    def close(self) -> None:
        self._inner.close()
