"""Checks of single values as a user typed them: each returns the value in its type, or says what it should be.

A check raises `ValueError` whose text completes "... is not".
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from typing import Any

from kvswap.core.errors import KvswapError
from kvswap.core.ids import PeerId
from kvswap.core.text import is_printable, printable

Check = Callable[[Any], Any]

_DEVICE = re.compile(r"cpu|mps|cuda(:\d{1,3})?")
_GROUP = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HOST = re.compile(r"(?=.{1,253}$)([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?\.?)+")
_BARE = frozenset({"p2p-circuit", "ws", "wss", "quic", "quic-v1", "tls", "noise", "http", "https", "webtransport"})
_SHOWN = 80


def shown(value: Any) -> str:
    """Format a value as one short printable line."""
    text = printable(repr(value))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."


def choice(*names: str) -> Check:
    """Make a check that the value is one of some names."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"one of {', '.join(name or 'nothing (empty)' for name in names)}")
        return value

    return check


def whole(low: int, high: int) -> Check:
    """Make a check that the value is a whole number in a range, both ends included.

    Text, as the environment has it, counts too.
    """

    def check(value: Any) -> int:
        wanted = ValueError(f"a whole number from {low} to {high}")
        if isinstance(value, bool) or not isinstance(value, int | str) or (isinstance(value, str) and len(value) > 40):
            raise wanted
        try:
            number = int(value)
        except ValueError:
            raise wanted from None
        if not low <= number <= high:
            raise wanted
        return number

    return check


def number(low: float, high: float) -> Check:
    """Make a check that the value is a finite number in a range, both ends included; text counts too."""

    def check(value: Any) -> float:
        wanted = ValueError(f"a number from {low:g} to {high:g}")
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise wanted
        try:
            found = float(value)
        except (ValueError, OverflowError):
            raise wanted from None
        if not math.isfinite(found) or not low <= found <= high:
            raise wanted
        return found

    return check


def yes_or_no(value: Any) -> bool:
    """Check that a value is true or false; the text forms 1/0, true/false, yes/no and on/off count too."""
    if isinstance(value, bool):
        return value
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if isinstance(value, int | str) and (found := known.get(str(value).strip().lower())) is not None:
        return found
    raise ValueError("true or false")


def model(value: Any) -> str:
    """Check the form of a model's name or directory; whether it exists is asked where models are known."""
    if not isinstance(value, str) or not value.strip() or len(value) > 4096 or not is_printable(value):
        raise ValueError("the name or the directory of a model")
    return value.strip()


def device(value: Any) -> str:
    """Check a device name of torch: cpu, mps, cuda or cuda:N."""
    if not isinstance(value, str) or not _DEVICE.fullmatch(value):
        raise ValueError("one of cpu, mps, cuda, cuda:N")
    return value


def group(value: Any) -> str:
    """Check the form of a group's name; empty text means no group."""
    if not isinstance(value, str) or (value and not _GROUP.fullmatch(value)):
        raise ValueError("a group's name of letters, digits, dot, dash, underscore")
    return value


def addresses(each: Callable[[str], str]) -> Check:
    """Make a check of several addresses, a list or text with commas between them; `each` checks one."""

    def check(value: Any) -> tuple[str, ...]:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
            raise ValueError("a list of multiaddrs")
        return tuple(each(item.strip()) for item in items if item.strip())

    return check


def listened(address: str) -> str:
    """Check a multiaddr that this node can listen on: an address of this machine and a TCP port."""
    parts = _parts(address)
    if [name for name, _ in parts if name != "ip6zone"] not in (["ip4", "tcp"], ["ip6", "tcp"]):
        raise ValueError(f"a multiaddr to listen on: {shown(address)} is not /ip4/ADDRESS/tcp/PORT or /ip6/...")
    return address


def dialled(address: str) -> str:
    """Check a multiaddr that others can dial: an address and a port other than 0."""
    parts = _parts(address)
    first = next((name for name, _ in parts if name != "ip6zone"), "")
    ports = [value for name, value in parts if name in ("tcp", "udp")]
    if first not in ("ip4", "ip6", "dns", "dns4", "dns6") or not ports or "0" in ports:
        raise ValueError(f"a multiaddr that can be dialled: {shown(address)} has no address and port, as /ip4/A/tcp/P")
    return address


def of_peer(address: str) -> str:
    """Check the multiaddr of a peer, which has the PeerId at its end."""
    parts = _parts(address)
    if not parts or parts[-1][0] != "p2p":
        raise ValueError(f"the multiaddr of a peer: {shown(address)} has no /p2p/PEER at its end; kvswap id prints one")
    if parts[0][0] != "dnsaddr":
        dialled(address)
    return address


def _parts(address: str) -> list[tuple[str, str]]:
    """Split a multiaddr into (protocol, value).  Raises `ValueError`."""
    words = address.split("/")
    wrong = ValueError(f"a multiaddr: {shown(address)} should be like /ip4/192.0.2.1/tcp/4777")
    if len(address) > 512 or words[0] or len(words) < 2:
        raise wrong
    parts, rest = [], words[1:]
    while rest:
        name = rest.pop(0)
        if name in _BARE:
            parts.append((name, ""))
        elif rest and (test := _VALUES.get(name)) is not None and test(value := rest.pop(0)):
            parts.append((name, value))
        else:
            raise wrong
    return parts


def _port(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= 65_535


def _ip(version: int) -> Callable[[str], bool]:
    kind = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address

    def test(text: str) -> bool:
        try:
            return "%" not in text and bool(kind(text))
        except ValueError:
            return False

    return test


def _peer(text: str) -> bool:
    try:
        PeerId.parse(text)
    except KvswapError:
        return False
    return True


def _name(text: str) -> bool:
    return _HOST.fullmatch(text) is not None


_VALUES: dict[str, Callable[[str], bool]] = {
    "ip4": _ip(4),
    "ip6": _ip(6),
    "ip6zone": _name,
    "dns": _name,
    "dns4": _name,
    "dns6": _name,
    "dnsaddr": _name,
    "sni": _name,
    "tcp": _port,
    "udp": _port,
    "p2p": _peer,
}
