"""Where a request comes from, also when a proxy brings it.

What a proxy says of its clients is believed from trusted proxies alone: anybody can write an `X-Forwarded-For`. Each
proxy adds at the right whom it had before it, so the client is the rightmost address that is not a trusted proxy's;
what stands further to the left is hearsay.
"""

import logging
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias

from graphql_api.wire.headers import Headers

log = logging.getLogger(__name__)

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

# What stands for a peer whose address the kernel does not tell, as of a connection that has ended.
UNKNOWN: Final = "unknown"
# One home or one machine has so many of the bits of an IPv6 address; those below are the client's own to choose.
IPV6_PREFIX_BITS: Final = 64
# What is read of a header that says who was before a proxy, from its end, and how many hops.
FORWARDED_CHARACTERS_MAX: Final = 1_024
HOPS_MAX: Final = 32
# Addresses that are remembered with what is known of them.
REMEMBERED_ADDRESSES_MAX: Final = 4_096


class Addresses:
    """Knows which peers are proxies, and which clients are not counted."""

    def __init__(self, trusted_proxies: tuple[str, ...], unlimited: tuple[str, ...]) -> None:
        self._trusted = networks(trusted_proxies)
        self._unlimited = networks(unlimited)
        self._peer = lru_cache(REMEMBERED_ADDRESSES_MAX)(self._know_peer)
        self._client = lru_cache(REMEMBERED_ADDRESSES_MAX)(self._find_client)
        self._counted = lru_cache(REMEMBERED_ADDRESSES_MAX)(self._count_as)
        self._warned = False

    def client(self, peer: str | None, headers: Headers) -> str:
        """The client's address as text; of a peer without one it is `unknown`."""
        trusted, text, _ = self._peer(peer)
        return self._client(text, _forwarded(headers)) if trusted else text

    def counted_as(self, peer: str | None, headers: Headers) -> str | None:
        """By which name limits count the client; None when they do not concern it."""
        trusted, text, counted = self._peer(peer)
        if trusted:
            return self._counted(self._client(text, _forwarded(headers)))
        if not self._warned and "x-forwarded-for" in headers:
            self._warned = True
            log.warning(
                "X-Forwarded-For comes from %s, which SPECTRAL_TRUSTED_PROXIES does not name: if that is a proxy, "
                "its clients are counted as one.",
                text,
            )
        return counted

    def _know_peer(self, peer: str | None) -> tuple[bool, str, str | None]:
        """Whether a peer is a trusted proxy, its address, and as what it is counted."""
        address = parse(peer) if peer else None
        if address is None:
            return False, UNKNOWN, UNKNOWN
        return _within(address, self._trusted), str(address), self._count_as(str(address))

    def _find_client(self, proxy: str, forwarded: str) -> str:
        client = proxy
        for hop in reversed(forwarded.split(",")[-HOPS_MAX:]):
            address = parse(hop)
            if address is None:
                # "unknown", or garbage: the last one that is known had it from there.
                break
            client = str(address)
            if not _within(address, self._trusted):
                break
        return client

    def _count_as(self, client: str) -> str | None:
        address = parse(client)
        if address is None:
            return client
        if _within(address, self._unlimited):
            return None
        if isinstance(address, IPv6Address):
            return str(ip_network((address, IPV6_PREFIX_BITS), strict=False))
        return str(address)


def networks(texts: tuple[str, ...]) -> tuple[Network, ...]:
    """Addresses and networks as a setting names them; ValueError names what is neither."""
    return tuple(ip_network(text, strict=False) for text in texts)


def parse(text: str) -> Address | None:
    """The address in what a proxy writes: bare, quoted, in brackets, with a port; None when there is none."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # A socket that takes both kinds shows the older kind in the clothes of the newer.
    return getattr(address, "ipv4_mapped", None) or address


def _forwarded(headers: Headers) -> str:
    """The addresses that proxies name, in the order in which they do."""
    listed = headers.get("x-forwarded-for")
    if listed is not None:
        # Cut before it is remembered: a client may have written most of it.
        return listed[-FORWARDED_CHARACTERS_MAX:]
    hops = headers.get("forwarded")
    return "" if hops is None else ",".join(map(_for, hops[-FORWARDED_CHARACTERS_MAX:].split(",")))


def _for(hop: str) -> str:
    for pair in hop.split(";"):
        name, _, value = pair.partition("=")
        if name.strip().lower() == "for":
            return value
    return ""


def _within(address: Address, nets: tuple[Network, ...]) -> bool:
    return any(address in net for net in nets)
