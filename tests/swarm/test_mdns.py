"""Nodes on one local network find each other without being told anything."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import pytest

from tests.support import Daemon, until

pytestmark = [pytest.mark.swarm]


def multicast_works() -> bool:
    """Send a datagram to a multicast group and see whether it comes back."""
    group, port = "224.0.0.251", 0
    try:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        ):
            receiver.bind(("", port))
            receiver.setsockopt(
                socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, struct.pack("4s4s", socket.inet_aton(group), b"\0" * 4)
            )
            receiver.settimeout(2)
            sender.sendto(b"probe", (group, receiver.getsockname()[1]))
            return receiver.recv(100) == b"probe"
    except OSError:
        return False


def test_two_nodes_meet_by_mdns(daemon: Callable[..., Daemon]) -> None:
    a, b = daemon("a", "--mdns"), daemon("b", "--mdns")
    if multicast_works():
        until(
            lambda: any(p["peer"] == b.ready["peer"] and p["connected"] for p in a.client.peers()),
            what="A to find B by mDNS",
        )
    else:  # no multicast on this machine: the nodes run all the same
        assert a.client.status()["p2p"] and b.client.status()["p2p"]
