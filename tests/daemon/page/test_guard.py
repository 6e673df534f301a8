"""Who may call the page: its own browsers, from the page itself, and nobody else; tried against a daemon over HTTP."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp
import pytest

from kvswap.core.ids import Cid
from kvswap.daemon.page.guard import CHANGE_HEADER, HEADERS, PREFIX
from kvswap.daemon.page.page import ACTIONS
from tests.support import Daemon, run

ARTIFACT = str(Cid.of(b"of nobody"))


@dataclass(frozen=True)
class Browser:
    """What a browser has that came by a link."""

    base: str  # http://127.0.0.1:PORT
    host: str
    cookie: str
    token: str

    def headers(self, *, change: bool = False) -> dict[str, str]:
        right = {"Host": self.host, "Cookie": self.cookie}
        return right | {"Origin": f"http://{self.host}", CHANGE_HEADER: self.token} if change else right


async def call(browser: Browser, path: str, method: str = "GET", **headers: str | None) -> tuple[int, str]:
    """Return status and text; a header that is None is left out."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    sent = browser.headers(change=method != "GET") | given
    kept = {name: value for name, value in sent.items() if value is not None}
    skipped = [] if "Origin" in kept else ["Origin"]
    async with aiohttp.ClientSession(skip_auto_headers=skipped) as session:
        async with session.request(
            method, browser.base + path, headers=kept, data=b"{}", allow_redirects=False
        ) as answer:
            if method == "GET":
                for name, value in HEADERS.items():
                    assert answer.headers[name] == value, (path, name)
            return answer.status, await answer.text()


async def follow(link: str) -> tuple[int, str, str]:
    """Open a link as a browser would: (status, cookie, place that it leads to)."""
    parts = urlsplit(link)
    async with aiohttp.ClientSession() as session:
        async with session.get(
            f"http://127.0.0.1:{parts.port}{parts.path}?{parts.query}",
            headers={"Host": parts.netloc},
            allow_redirects=False,
        ) as answer:
            cookie = answer.headers.get("Set-Cookie", "")
            return answer.status, cookie, answer.headers.get("Location", "")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path_factory.mktemp("page") / "home", ["--no-p2p"]).start()
    yield daemon
    daemon.stop()


@pytest.fixture(scope="module")
def browser(node: Daemon) -> Browser:
    return open_page(node)


def open_page(node: Daemon, *, plain: bool = False) -> Browser:
    link = node.client.ui(plain=plain).url
    host = urlsplit(link).netloc
    status, cookie, place = run(follow(link))
    assert (status, place) == (303, f"{PREFIX}/")
    assert {"HttpOnly", "SameSite=Strict", f"Path={PREFIX}"} <= set(cookie.split("; "))
    found = Browser(f"http://127.0.0.1:{urlsplit(link).port}", host, cookie.partition(";")[0], "")
    status, html = run(call(found, f"{PREFIX}/"))
    assert status == 200
    token = html.partition('name="kvswap-token" content="')[2].partition('"')[0]
    return Browser(found.base, host, found.cookie, token)


def test_a_link_works_once_and_is_in_no_log(node: Daemon) -> None:
    link = node.client.ui().url
    assert run(follow(link))[0] == 303
    status, cookie, _ = run(follow(link))
    assert (status, cookie) == (401, "")
    assert run(follow(link + "x"))[0] == 401
    secret = link.partition("once=")[2]
    for file in (node.home / "kvswap.log", node.home / "stderr.log"):
        assert secret not in file.read_text()


def test_the_page_is_for_who_came_by_a_link(browser: Browser) -> None:
    for path in ("/", "/live", "/page.js", "/icon.svg", "?q=x"):
        assert run(call(browser, PREFIX + path, Cookie=None))[0] in (401, 403), path
        assert run(call(browser, PREFIX + path, Cookie=browser.cookie + "x"))[0] == 401, path
    assert run(call(browser, f"{PREFIX}/page.css", Cookie=None))[0] == 200


STRANGE = {
    "Host": [
        "evil.example",
        "localhost:1",
        "127.0.0.1",
        "{port}",
        "x.localhost:{port}",
        "127.0.0.1:{port}.evil.example",
    ],
    "Origin": [
        "null",
        "http://127.0.0.1:1",
        "http://localhost:{port}",
        "https://{host}",
        "http://{host}.evil",
        None,
        "",
    ],
    "Kvswap-Page": [None, "", "x", "\N{LATIN SMALL LETTER E WITH ACUTE}"],
    "Cookie": [None, "x=y"],
    "Sec-Fetch-Site": ["cross-site", "same-site", "x"],
}


@pytest.mark.parametrize("method,path", sorted(ACTIONS))
def test_every_change_needs_all_of_it(browser: Browser, method: str, path: str) -> None:
    place = PREFIX + path.replace("{ref}", ARTIFACT).replace("{peer}", "x").replace("{name}", "nobody")
    port = browser.host.rpartition(":")[2]
    for name, values in STRANGE.items():
        for value in values:
            given = None if value is None else value.format(port=port, host=browser.host)
            status, text = run(call(browser, place, method, **{name.replace("-", "_"): given}))
            assert status in (401, 403), (name, value, status, text)
    status, text = run(call(browser, place, method))  # and so it is the handler that answers
    assert status not in (401, 403) and text.startswith("{"), text


def test_what_the_page_cannot_do_is_not_there(browser: Browser) -> None:
    for method, path in (
        ("POST", "/v1/stop"),
        ("POST", "/v1/ui"),
        ("POST", "/v1/rotate"),
        ("POST", "/v1/groups/x/export"),
        ("POST", "/v1/import"),
        ("GET", "/v1/artifacts"),
    ):
        status, _ = run(call(browser, PREFIX + path, method)) if method != "GET" else (404, "")
        assert status == 404, path


def test_a_session_opens_nothing_of_the_api_and_the_api_nothing_of_the_page(browser: Browser, node: Daemon) -> None:
    async def both() -> tuple[int, int]:
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{browser.base}/v1/status", headers={"Cookie": browser.cookie}) as api:
                pass
            bearer = {"Authorization": f"Bearer {_token(node)}", "Host": browser.host}
            async with session.get(f"{browser.base}{PREFIX}/", headers=bearer) as page:
                return api.status, page.status

    assert run(both()) == (401, 401)


def _token(node: Daemon) -> str:
    from kvswap.core.runfile import RunFile

    return RunFile.read(node.home).token


def test_every_daemon_has_a_name_and_a_cookie_of_its_own(node: Daemon, tmp_path) -> None:  # type: ignore[no-untyped-def]
    other = Daemon(tmp_path / "other", ["--no-p2p"]).start()
    try:
        pages = [open_page(node), open_page(other)]
        for here, there in itertools.permutations(pages, 2):
            assert here.host.partition(":")[0] != there.host.partition(":")[0]
            crossed = Browser(here.base, here.host, there.cookie, there.token)
            assert run(call(crossed, f"{PREFIX}/"))[0] == 401
    finally:
        other.stop()
    assert run(call(open_page(node, plain=True), f"{PREFIX}/"))[0] == 200


@pytest.mark.parametrize("query", ["?page=-1", "?page=x", "?page=99999999999", "?page=%C2%B2", "?q=%00%ff&page=3"])
def test_a_strange_page_number_is_an_error_or_nothing(browser: Browser, query: str) -> None:
    status, _ = run(call_any(browser, f"{PREFIX}/{query}"))
    assert status in (200, 400)


async def call_any(browser: Browser, path: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session:
        async with session.get(browser.base + path, headers=browser.headers()) as answer:
            return answer.status, await answer.text()


def test_what_others_wrote_is_text_and_never_markup(node: Daemon) -> None:
    browser = open_page(node)
    name = "<script>alert(1)</script>"
    node.client.trust_add(node.publisher[:-1] + node.publisher[-1], name)
    _, html = run(call_any(browser, f"{PREFIX}/?q=%22%3E%3Cimg%20src=x%3E"))
    assert "<script>alert" not in html and "<img" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
