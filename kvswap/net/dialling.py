"""The rule for which addresses a node may connect to, depending on who supplied them: for multiaddrs and for URLs.

An unknown peer that supplies an address chooses where this machine sends its packets (as in server-side request
forgery). So an address from a peer, its *sender*, leads only where the sender could have sent packets as well: to the
public internet; to a private or link-local network if we are connected to the sender on a network of that kind; to this
machine if the sender is on it. It never leads to addresses that no peer can have (unspecified, multicast, reserved, the
metadata services of clouds), to a port below 1024, or to a name: names are only for what the user typed, which is not
restricted.

An IPv6 address that embeds an IPv4 address (mapped, compatible, 6to4, NAT64, Teredo, ISATAP) is also judged by that
one.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import urlsplit

from kvswap.core.errors import UsageError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

BY_HAND = "by hand"
"""The `sender` of addresses that the user typed."""

JUDGED = "judged"
"""The `sender` of addresses that passed the rule already, when they were received."""

MOST = 8
_LOWEST_PORT = 1_024
_CIRCUIT = "/p2p-circuit"


class Scope(StrEnum):
    """The kind of network that an IP address belongs to."""

    LOOPBACK = "loopback"
    LINK = "link-local"
    PRIVATE = "private"
    PUBLIC = "public"
    NOWHERE = "nowhere"  # no peer can have such an address


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


_METADATA = _networks(
    *("169.254.169.254", "169.254.170.2", "169.254.170.23", "169.254.169.253", "169.254.0.23", "169.254.42.42"),
    *("100.100.100.200", "192.0.0.192", "168.63.129.16"),
    *("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:42::42", "fe80::a9fe:a9fe"),
)
_NOWHERE = _networks(
    *("0.0.0.0/8", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24"),
    *("203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
    *("::/128", "64:ff9b:1::/48", "100::/64", "2001:2::/48", "2001:db8::/32", "3fff::/20", "5f00::/16"),
    *("fec0::/10", "ff00::/8"),
)
_KINDS: tuple[tuple[Scope, tuple[Network, ...]], ...] = (
    (Scope.NOWHERE, _METADATA + _NOWHERE),
    (Scope.LOOPBACK, _networks("127.0.0.0/8", "::1/128")),
    (Scope.LINK, _networks("169.254.0.0/16", "fe80::/10")),
    (Scope.PRIVATE, _networks("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")),
    (Scope.PUBLIC, _networks("0.0.0.0/0", "2000::/3", "64:ff9b::/96")),
)


def plain_host(host: str) -> Address | None:
    """Parse an IP address, mapping an IPv4-mapped IPv6 address to IPv4.  Returns None for anything else."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped if mapped is not None else address


def _inside(address: Address) -> list[Address]:
    """Return the IPv4 addresses to which a packet for this IPv6 address would go."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    number, found = int(address), []
    if number >> 32 == 0 and number > 1:  # compatible
        found.append(number & 0xFFFFFFFF)
    if number >> 32 == 0x64FF9B << 64:  # NAT64
        found.append(number & 0xFFFFFFFF)
    if number >> 112 == 0x2002:  # 6to4
        found.append(number >> 80 & 0xFFFFFFFF)
    if number >> 96 == 0x20010000:  # Teredo: its server, and its client
        found += [number >> 64 & 0xFFFFFFFF, ~number & 0xFFFFFFFF]
    if number >> 32 & 0xFFFFFFFF in (0x00005EFE, 0x02005EFE):  # ISATAP
        found.append(number & 0xFFFFFFFF)
    return [ipaddress.IPv4Address(n) for n in found]


def scope_of(host: str | Address) -> Scope:
    """Return the kind of network that an address belongs to; `Place.NOWHERE` for what is no address."""
    address = plain_host(str(host))
    if address is None:
        return Scope.NOWHERE
    inside = [scope_of(inner) for inner in _inside(address)]
    if address.version == 6 and int(address) >> 32 == 0 and inside:
        return inside[0]
    kind = next((k for k, networks in _KINDS if any(address in n for n in networks)), Scope.NOWHERE)
    different = [place for place in inside if place != kind]
    return different[0] if different else kind


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The host and port of a multiaddr; `named` is True if the host is a name to be resolved."""

    host: str
    port: int
    named: bool


_NUMBER = re.compile(r"[0-9]{1,5}")
_PEER = re.compile(r"[1-9A-HJ-NP-Za-km-z]{1,128}|[a-z2-7]{1,128}")


def endpoint_of(address: str) -> Endpoint | None:
    """Parse the endpoint that a multiaddr leads to first: the peer itself or, for a circuit, the relay.

    Returns None for any form that is not dialled.
    """
    direct, circuit, beyond = address.partition(_CIRCUIT)
    parts = direct.split("/")
    if len(parts) not in (5, 7) or parts[0] or parts[3] != "tcp" or not _NUMBER.fullmatch(parts[4]):
        return None
    if len(parts) == 7 and (parts[5] not in ("p2p", "ipfs") or not _PEER.fullmatch(parts[6])):
        return None
    if circuit and (len(parts) != 7 or not re.fullmatch(rf"(/p2p/({_PEER.pattern}))?", beyond)):
        return None
    kind, host, port = parts[1], parts[2], int(parts[4])
    if not 0 < port < 1 << 16:
        return None
    if kind in ("dns", "dns4", "dns6", "dnsaddr"):
        return Endpoint(host.lower(), port, True)
    try:
        made = ipaddress.IPv4Address(host) if kind == "ip4" else ipaddress.IPv6Address(host)
    except ValueError:
        return None
    if kind not in ("ip4", "ip6") or "%" in host:
        return None
    return Endpoint(str(plain_host(str(made))), port, False)


def may_dial(address: str, sender: str | None) -> bool:
    """Return True if a multiaddr may be dialled when `sender` supplied it.

    `sender` is the IP address at which the supplying peer is connected, `BY_HAND` or `JUDGED`; None stands for a peer
    that is unknown or reached through a relay.
    """
    if sender == BY_HAND:
        return True
    end = endpoint_of(address)
    if end is None or end.named or end.port < _LOWEST_PORT:
        return False
    if sender == JUDGED:
        return True
    return may_follow(end.host, sender)


def may_follow(host: str, sender: str | None) -> bool:
    """Return True if an IP address may be connected to on the word of who is at `sender`, another one."""
    place = scope_of(host)
    if place is Scope.PUBLIC:
        return True
    return place is not Scope.NOWHERE and sender is not None and scope_of(sender) is place


def may_reach(host: str, port: int) -> bool:
    """Return True if a port that a connected peer announced may be reached at `host`, where the peer is connected."""
    return port >= _LOWEST_PORT and scope_of(host) is not Scope.NOWHERE


def allowed(addresses: Iterable[str], sender: str | None) -> tuple[str, ...]:
    """Return the first eight of a peer's distinct addresses that may be dialled when `sender` supplied them."""
    return tuple(dict.fromkeys(a for a in addresses if may_dial(a, sender)))[:MOST]


def common(hosts: Iterable[str | None]) -> str | None:
    """Return one of the hosts if all are on one kind of network other than the public one, else None.

    The result is the `sender` of addresses that came from an unknown one of these connected hosts.
    """
    known = list(hosts)
    places = {scope_of(host) for host in known if host is not None}
    if None in known or len(places) != 1 or places & {Scope.PUBLIC, Scope.NOWHERE}:
        return None
    return known[0]


def group_of(host: str) -> str:
    """Return the key under which limits count a host: its IPv4 address, or the /64 network of its IPv6 address.

    One machine can have all addresses of a /64 network.
    """
    address = plain_host(host)
    if address is None or address.version == 4:
        return str(address or host)
    return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))


# -- URLs ----------------------------------------------------------------------------------------------

_NAME = re.compile(r"(?=.{1,253}\Z)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.I)


def bracketed(host: str) -> str:
    """Return a host as it is written in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def origin_of(url: str, *, plain: bool = False) -> str:
    """Parse a URL that is scheme, host and port and nothing else; `plain` says that the user accepts http.

    Raises `UsageError` for anything more, for http without `plain`, for a host that is neither an address nor a name,
    and for addresses that no peer can have.
    """
    refused = UsageError(
        f"{url[:100]!r} is not https://host:port",
        cause="an address of a host is scheme, host and port: no path, query, fragment, user, or other sign",
        hint="kvswap host invite NAME, on the host",
    )
    match = re.fullmatch(r"(https?)://(\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Za-z.-]{1,253})(?::([0-9]{1,5}))?/?", url)
    if match is None:
        raise refused
    scheme, host, port = match.group(1), match.group(2).strip("[]"), match.group(3)
    if port is not None and not 0 < int(port) < 1 << 16:
        raise refused
    address = plain_host(host)
    if address is None and (not _NAME.fullmatch(host) or not re.search(r"[A-Za-z]", host.rpartition(".")[2])):
        raise refused
    if address is not None and scope_of(address) is Scope.NOWHERE:
        raise refused
    if scheme == "http" and not plain:
        raise UsageError(
            f"{url[:100]!r} is not https",
            cause="the token and the question would be readable on the way",
            hint="kvswap host join --plain, if you know the way there",
        )
    return f"{scheme}://{bracketed(host)}" + (f":{port}" if port is not None else "")


def host_and_port(origin: str) -> tuple[str, int]:
    """Return the host and port of an origin that `origin_of` returned; the port defaults to the scheme's."""
    parts = urlsplit(origin)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
