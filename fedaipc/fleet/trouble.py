"""Why a PC does not reach its server, explained for its owner."""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING

import httpx

from fedaipc.errors import check_clock

if TYPE_CHECKING:
    from collections.abc import Iterator

_LONGEST = 200  # characters of what a library says


def why(error: httpx.HTTPError, proxy: httpx.Proxy | None = None) -> str:
    """One line; `proxy` is what the call went through."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _about_certificate(cause.verify_code)
    text = str(error).split("\n", maxsplit=1)[0][:_LONGEST] or type(error).__name__
    text = re.sub(r"^\[Errno -?\d+\] (\w)", lambda found: found[1].lower(), text)
    if proxy is None:
        return text
    if isinstance(error, httpx.ProxyError):
        return f"the proxy {proxy.url} refuses: {text}"
    return f"{text} (through the proxy {proxy.url})"


def _about_certificate(code: int) -> str:
    match code:  # OpenSSL's numbers, X509_V_ERR_...
        case 9:
            return f"its certificate is not yet valid: {check_clock()}"
        case 10:
            return (
                f"its certificate has expired: {check_clock()}; if that is right, tell the "
                "federation"
            )
        case 62 | 64:
            return (
                "its certificate is for another name than this PC calls it by: tell the federation"
            )
    return (
        "its certificate is not signed by this federation's authority: the server was set up "
        "again, or another machine answers in its place"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
