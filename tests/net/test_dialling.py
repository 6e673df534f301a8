"""Where strangers' words may lead: classes of addresses times classes of senders, and every way to write them."""

from __future__ import annotations

import ast
import ipaddress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvswap.core.errors import UsageError
from kvswap.net import dialling
from kvswap.net.dialling import BY_HAND, Scope, may_dial, origin_of, scope_of

ROOT = Path(__file__).resolve().parents[2]
PEER = "12D3KooWGMKAgeKPFVcPCFNQxRz1KsjdEwUwA8HQX9jxUqFLJcRf"
CLASSES: dict[Scope, list[str]] = {
    Scope.LOOPBACK: ["127.0.0.0/8", "::1/128"],
    Scope.LINK: ["169.254.1.0/24", "169.254.200.0/24", "fe80::/64"],
    Scope.PRIVATE: ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fd12:3456::/32", "fc00::/8"],
    Scope.PUBLIC: ["1.1.1.0/24", "8.8.0.0/16", "185.1.0.0/16", "2606:4700::/32", "2a00:1450::/32"],
    Scope.NOWHERE: [
        *("0.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32", "192.0.2.0/24", "198.18.0.0/15"),
        *("169.254.169.254/32", "169.254.170.2/32", "100.100.100.200/32", "fd00:ec2::254/128"),
        *("::/128", "ff00::/8", "2001:db8::/32", "fec0::/10", "4000::/3"),
    ],
}
V4 = {place: [n for n in networks if ":" not in n] for place, networks in CLASSES.items()}


@st.composite
def hosts(draw: st.DrawFn, place: Scope, only4: bool = False) -> str:
    network = ipaddress.ip_network(draw(st.sampled_from((V4 if only4 else CLASSES)[place])))
    offset = draw(st.integers(0, min(network.num_addresses, 1 << 64) - 1))
    return str(network[offset] if offset < network.num_addresses else network[0])


@st.composite
def wrapped(draw: st.DrawFn, inner: str) -> str:
    """An IPv4 address in one of the IPv6 forms that lead to it."""
    number = int(ipaddress.IPv4Address(inner))
    forms = [
        0xFFFF << 32 | number,  # mapped
        0x64FF9B << 96 | number,  # NAT64
        0x2002 << 112 | number << 80 | draw(st.integers(0, 2**80 - 1)),  # 6to4
        0x20010000 << 96 | int(ipaddress.IPv4Address("8.8.8.8")) << 64 | (number ^ 0xFFFFFFFF),  # Teredo, client
        0x20010000 << 96 | number << 64 | (int(ipaddress.IPv4Address("8.8.8.8")) ^ 0xFFFFFFFF),  # Teredo, server
        0x2606470000000000 << 64 | 0x5EFE << 32 | number,  # ISATAP
    ]
    if number > 1:
        forms.append(number)  # compatible
    return str(ipaddress.IPv6Address(draw(st.sampled_from(forms))))


@st.composite
def written(draw: st.DrawFn, host: str, port: int) -> str:
    """A multiaddr, in one of its forms."""
    address = ipaddress.ip_address(host)
    text = f"/ip{address.version}/{draw(st.sampled_from((str(address), address.exploded)))}/tcp/{port}"
    end = draw(st.sampled_from(("", f"/p2p/{PEER}", f"/p2p/{PEER}/p2p-circuit", f"/p2p/{PEER}/p2p-circuit/p2p/{PEER}")))
    return text + end


MANY = settings(max_examples=60, deadline=None)


@pytest.mark.parametrize("sender", [*Scope, None])
@pytest.mark.parametrize("place", list(Scope))
@MANY
@given(data=st.data(), port=st.integers(1024, 65535))
def test_an_address_leads_only_where_its_teller_is(
    place: Scope, sender: Scope | None, data: st.DataObject, port: int
) -> None:
    host = data.draw(hosts(place))
    assert scope_of(host) is place
    who = data.draw(hosts(sender)) if sender is not None else None
    address = data.draw(written(host, port))
    wanted = place is Scope.PUBLIC or (place is not Scope.NOWHERE and place is sender)
    assert may_dial(address, who) is wanted, (address, who)
    assert may_dial(address, BY_HAND)
    low = data.draw(written(host, data.draw(st.integers(1, 1023))))
    assert not may_dial(low, who) and may_dial(low, BY_HAND)


@pytest.mark.parametrize("place", [p for p in Scope if p is not Scope.PUBLIC])
@MANY
@given(data=st.data())
def test_no_form_of_ipv6_hides_an_ipv4_address(place: Scope, data: st.DataObject) -> None:
    inner = data.draw(hosts(place, only4=True))
    if inner in ("0.0.0.0", "0.0.0.1"):
        return
    outer = data.draw(wrapped(inner))
    assert scope_of(outer) is place, (inner, outer)
    assert not may_dial(f"/ip6/{outer}/tcp/4001", "8.8.8.8") and not may_dial(f"/ip6/{outer}/tcp/4001", None)


@pytest.mark.parametrize(
    "address",
    [
        "/dns4/localhost/tcp/4001",
        "/dns/example.org/tcp/4001",
        "/dnsaddr/bootstrap.libp2p.io",
        "/ip4/8.8.8.8/udp/4001/quic-v1",
        "/ip4/8.8.8.8/tcp/4001/ws",
        "/ip4/8.8.8.8/tcp/4001/http",
        "/ip6zone/eth0/ip6/fe80::1/tcp/4001",
        "/ip6/fe80::1%eth0/tcp/4001",
        "/unix/tmp/socket",
        "/ip4/8.8.8.8/tcp/0",
        "/ip4/8.8.8.8/tcp/65536",
        "/ip4/8.8.8.8/tcp/-1",
        "/ip4/8.8.8.8/tcp/4001/p2p/x/ip4/127.0.0.1/tcp/22",
        "/ip4/127.1/tcp/4001",
        "/ip4/0x7f000001/tcp/4001",
        "/ip4/2130706433/tcp/4001",
        "/ip4/127.0.0.01/tcp/4001",
        f"/p2p/{PEER}/p2p-circuit",
        f"/ip4/8.8.8.8/tcp/4001/p2p-circuit/p2p/{PEER}",
        f"/ip4/8.8.8.8/tcp/4001/p2p/{PEER}/p2p-circuit/ip4/10.0.0.1/tcp/4001",
        "",
        "/",
        "8.8.8.8:4001",
    ],
)
def test_other_forms_are_for_the_user(address: str) -> None:
    for sender in ("127.0.0.1", "8.8.8.8", "10.0.0.1", None):
        assert not may_dial(address, sender)


THERE = "/p2p/12D3KooWKnDdG3iXw9eTFijk3EWSunZcFi54Zka4wmtqtt6rPxc8"


@pytest.mark.parametrize(
    "address",
    [
        "/dns4/example.org/tcp/4777" + THERE,
        "/dnsaddr/example.org/tcp/4777",
        "/ip6/fe80::1%eth0/tcp/4777",
        "/ip4/1.2.3.4/tcp/1023",
        "/ip4/1.2.3.4/tcp/4777/http/x",
        "/ip4/1.2.3.4/tcp/4777/p2p/no peer",
        "/ip4/1.2.3.4/tcp/4777/p2p-circuit",
        "/ip4/1.2.3.4/tcp/4777" + THERE + "/p2p-circuit/p2p/no peer",
        "/ip4/1.2.3.4/tcp/4777" + THERE + "/p2p-circuit" + THERE + "/p2p-circuit",
    ],
)
def test_no_word_makes_a_form_dialled_that_no_peer_needs(address: str) -> None:
    """Not where the address was judged before either: what is kept may have been judged by other rules."""
    for sender in (dialling.JUDGED, "1.2.3.4", "127.0.0.1", None):
        assert not may_dial(address, sender), sender


def test_a_peer_names_ports_of_its_own_machine_and_none_that_are_the_systems() -> None:
    """Its HTTPS port, at the address that it is connected from."""
    for host in ("127.0.0.1", "10.1.2.3", "1.2.3.4", "2a00::1"):
        assert dialling.may_reach(host, 1024) and not dialling.may_reach(host, 1023)
    for host in ("0.0.0.0", "169.254.169.254", "224.0.0.1", "a name", "::ffff:169.254.169.254"):
        assert not dialling.may_reach(host, 4777)


def test_of_the_addresses_of_a_peer_eight_are_kept_each_once() -> None:
    told = [f"/ip4/1.2.3.{n // 2}/tcp/4777" for n in range(40)] + ["/ip4/10.0.0.1/tcp/4777"]
    assert dialling.allowed(told, "1.2.3.4") == tuple(told[:16:2])
    assert dialling.allowed(told[-1:], "1.2.3.4") == ()


def test_who_is_unknown_is_judged_by_the_farthest_that_is_connected() -> None:
    common = dialling.common
    assert common(["127.0.0.1", "::1"]) == "127.0.0.1"
    assert common(["10.0.0.1", "192.168.1.1"]) == "10.0.0.1"
    for hosts_ in (["127.0.0.1", "10.0.0.1"], ["127.0.0.1", None], ["8.8.8.8"], [], ["127.0.0.1", "8.8.8.8"]):
        assert common(hosts_) is None


def test_limits_go_by_the_sixty_four_of_ipv6() -> None:
    group = dialling.group_of
    assert group("2a00:1450:1:2:3:4:5:6") == group("2a00:1450:1:2::") != group("2a00:1450:1:3::")
    assert group("::ffff:1.2.3.4") == group("1.2.3.4") != group("1.2.3.5")


@pytest.mark.parametrize(
    "url",
    [
        "https://host.example",
        "https://host.example:8443",
        "https://1.2.3.4:8100",
        "https://[2a00:1450::1]:8100",
        "https://[::1]:8100",
        "https://h:1/",
    ],
)
def test_urls_that_are_scheme_host_and_port(url: str) -> None:
    assert origin_of(url) == url.rstrip("/")
    with pytest.raises(UsageError, match="not https"):
        origin_of(url.replace("https", "http"))
    assert origin_of(url.replace("https", "http"), plain=True).startswith("http://")


ODD = [
    "/admin",
    "/admin/shutdown?confirm=yes&x=",
    "?a=b",
    "#",
    "#x",
    "/#",
    "//",
    "/..",
    "\\",
    "/%2e",
    ";x",
    " ",
    "\r\n",
]
HOSTS = [
    "user@h",
    "u:p@h",
    "127.1",
    "2130706433",
    "0x7f.1",
    "0177.0.0.1",
    "h..x",
    "-h",
    "h_x",
    "[::ffff:0.0.0.0]",
    "",
    "1",
]
NEVER = ["169.254.169.254", "[fd00:ec2::254]", "[::ffff:169.254.169.254]", "0.0.0.0", "[::]", "224.0.0.1", "[ff02::1]"]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "rest",
    [f"127.0.0.1:80{odd}" for odd in ODD]
    + [f"{h}:8100" for h in HOSTS + NEVER]
    + ["h:0", "h:65536", "h:x", "h:+1", "h:", "h:１"],
)
def test_urls_that_are_more_or_lead_nowhere(scheme: str, rest: str) -> None:
    with pytest.raises(UsageError):
        origin_of(f"{scheme}://{rest}", plain=True)


@pytest.mark.parametrize(
    "url", ["ftp://h", "file:///etc/passwd", "HTTPS://h\n", "https:h", "//h", "h:1", "\thttps://h"]
)
def test_other_schemes(url: str) -> None:
    with pytest.raises(UsageError):
        origin_of(url, plain=True)


def test_every_address_that_the_exchange_hands_on_names_its_teller() -> None:
    """`PeerAddress` with addresses and without a sender is the user's word: only where the user typed it."""
    by_hand = []
    for path in sorted((ROOT / "kvswap").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            made = isinstance(call, ast.Call) and getattr(call.func, "id", "") == "PeerAddress"
            if made and len(call.args) == 2 and not any(k.arg == "sender" for k in call.keywords):
                by_hand.append(f"{path.relative_to(ROOT)}: {ast.unparse(call)}")
    assert by_hand == [
        "kvswap/exchange/serving/upkeep.py: PeerAddress(peer, (address,))",  # bootstrap
        "kvswap/net/memory.py: PeerAddress(p, tuple(self._network.nodes[p].addresses()))",  # nothing is dialled
    ]
