"""Flower's HTTP clients over our own connections.

Their own constructors take proxies and certificate files from the environment, also for loopback,
and fail on those they cannot use.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from flwr.supercore.protobuf.client import ProtobufClient

_C = TypeVar("_C", bound="ProtobufClient")
_TIMEOUT = 30.0  # s, as in Flower


def flower_client(
    kind: type[_C], url: str, client: httpx.Client, interceptors: Sequence[Any]
) -> _C:
    """A client of Flower's class `kind` for `url` that speaks through `client`."""
    made = kind.__new__(kind)
    made.__dict__.update(
        _base_url=url, _interceptors=tuple(interceptors), _retry_invoker=None, _client=client
    )
    return made


def loopback(kind: type[_C], address: str, interceptors: Sequence[Any]) -> _C:
    """The same for `address` (host:port) on this machine: plain HTTP, whatever proxies are set."""
    client = httpx.Client(
        verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), timeout=_TIMEOUT, trust_env=False
    )
    return flower_client(kind, f"http://{address}", client, interceptors)


class LetGo:
    """An interceptor of Flower's clients: an answer is freed as soon as nobody needs it.

    httpx ties each response to itself, so that chunks of 5 MiB would stay in memory until
    garbage is collected, which happens rarely in a process with as many objects as torch makes.
    """

    def intercept(self, context: Any, call_next: Callable[[Any], Any]) -> Any:
        """Untie what was read."""
        response = call_next(context)
        if response.is_closed:
            response.stream = httpx.ByteStream(b"")
        return response
