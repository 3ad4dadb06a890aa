"""The owner's proxy, on a PC's way to its server. Nothing else of fedaipc goes through one.

As in other programs: `https_proxy`, otherwise `all_proxy`, in capitals too, or what Windows and
macOS have in their settings; `no_proxy` names hosts, domains (`.lan`, `*.lan`) and networks. The
proxy sees the server's name and how much passes, and no content: TLS goes through it.
"""

from __future__ import annotations

import urllib.request
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import httpx

from fedaipc.errors import AdmissionError


def proxy_for(address: str) -> httpx.Proxy | None:
    """What stands between this PC and `address` (host:port), if anything.

    Raises AdmissionError where a proxy is set that cannot be used.
    """
    found = urllib.request.getproxies()
    text = found.get("https") or found.get("all")
    host = address.rpartition(":")[0].strip("[]")
    if not text or _is_direct(host, address):
        return None
    try:
        # A name without a scheme is an HTTP proxy's.
        proxy = httpx.Proxy(text if "://" in text else f"http://{text}")
    except (httpx.InvalidURL, ValueError):
        proxy = None
    if proxy is None or not _is_usable(proxy.url):
        raise AdmissionError(
            f"the proxy {_without_password(text)} (https_proxy or all_proxy) cannot be used: set "
            f"https_proxy to http://HOST:PORT, or name {host} in no_proxy"
        )
    return proxy


def _is_usable(url: httpx.URL) -> bool:
    return url.scheme in {"http", "https"} and url.host != "" and (url.port or 1) < 65_536


def _is_direct(host: str, address: str) -> bool:
    if host == "localhost" or urllib.request.proxy_bypass(host):
        return True
    if any(part.startswith("*.") and host.endswith(part[1:]) for part in _unproxied()):
        return True
    with suppress(ValueError):
        number = ip_address(host)
        if number.is_loopback or any(number in network for network in _networks()):
            return True
    return bool(urllib.request.proxy_bypass(address))  # `no_proxy` may name a port


def _networks() -> list[IPv4Network | IPv6Network]:
    found: list[IPv4Network | IPv6Network] = []
    for part in _unproxied():
        with suppress(ValueError):
            found.append(ip_network(part, strict=False))
    return found


def _unproxied() -> list[str]:
    return [part.strip() for part in urllib.request.getproxies().get("no", "").split(",")]


def _without_password(text: str) -> str:
    text = text if text.isprintable() else ascii(text)
    head, at, rest = text.rpartition("@")
    scheme, colon, _ = head.partition("://")
    return f"{scheme if colon else ''}{colon}...@{rest}" if at else text
