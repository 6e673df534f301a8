"""The page in a real Chromium: every action, live, by keyboard, at 360 pixels and in the dark, and as an attacker."""

from __future__ import annotations

import http.server
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason='pip install -e ".[browser]"')
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

from tests.support import Daemon  # noqa: E402

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TEXT = "A page shows what a node does, and what it means to publish. " * 12
MINUTE = 60_000.0


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    assert CHROMIUM, "apt-get install chromium"
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory, tiny_models: dict[str, Path]) -> Iterator[tuple[Daemon, Daemon]]:
    root, model = tmp_path_factory.mktemp("browser"), str(tiny_models["llama"])
    alice = Daemon(root / "alice", ["--model", model]).start()
    bob = Daemon(root / "bob", ["--model", model, "--bootstrap", alice.address]).start()
    yield alice, bob
    bob.stop()
    alice.stop()


class Shown:
    """A page that is open; what its script complains of is collected."""

    def __init__(self, browser: Any, node: Daemon, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(5 * MINUTE)
        playwright.expect.set_options(timeout=5 * MINUTE)
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(node.client.ui().url)

    def sure(self, answer: str = "yes") -> str:
        said = str(self.page.inner_text("#sure-why"))
        self.page.click(f"#sure button[value={answer}]")
        return said

    def sees(self, selector: str, text: str) -> None:
        playwright.expect(self.page.locator(selector)).to_contain_text(text)

    def sees_not(self, selector: str, text: str) -> None:
        playwright.expect(self.page.locator(selector)).not_to_contain_text(text)


@pytest.fixture
def show(chromium: Any) -> Iterator[Callable[..., Shown]]:
    opened: list[Shown] = []

    def open_page(node: Daemon, **options: Any) -> Shown:
        opened.append(Shown(chromium, node, **options))
        return opened[-1]

    yield open_page
    for shown in opened:
        assert shown.complaints == []
        shown.context.close()


def test_a_document_is_published_pinned_withdrawn_and_removed(
    nodes: tuple[Daemon, Daemon], show: Callable[..., Shown]
) -> None:
    alice, _ = nodes
    shown = show(alice)
    page = shown.page
    assert "once=" not in page.url and page.url.endswith("/ui/")
    page.fill("#text", TEXT)
    page.click("#publish button")
    shown.sure("no")
    assert alice.client.ls() == []
    page.click("#publish button")
    assert "reveals its text" in shown.sure()
    shown.sees("#publish .told", "Published as")
    row = alice.client.ls()[0]
    shown.sees("#artifacts", row.artifact[:10])  # by itself: nobody loaded the page again
    page.click(f"button[data-url$='{row.artifact}/pin']")
    shown.sees("#artifacts", "own, pinned")
    assert next(r for r in alice.client.ls() if r.artifact == row.artifact).pinned
    page.click(f"button[data-url$='{row.artifact}/withdraw']")
    assert "cannot be taken back" in shown.sure()
    shown.sees_not("#artifacts", row.artifact[:10])
    assert row.artifact not in {r.artifact for r in alice.client.ls()}
    for name in [r.artifact for r in alice.client.ls()]:
        page.click(f"button[data-method=DELETE][data-url$='{name}']")
        shown.sure()
        playwright.expect(page.locator(f"button[data-method=DELETE][data-url$='{name}']")).to_have_count(0)
    assert alice.client.ls() == []
    shown.sees("#log", "withdrawn")


def test_trusting_a_publisher_says_what_follows_and_ends_again(
    nodes: tuple[Daemon, Daemon], show: Callable[..., Shown]
) -> None:
    alice, bob = nodes
    shown = show(bob)
    page = shown.page
    page.fill("#trust-peer", alice.publisher)
    page.fill("#trust-label", "alice")
    page.keyboard.press("Enter")
    assert "without being checked whole" in shown.sure()
    shown.sees("#trust", "alice")
    made = alice.client.publish(TEXT + "by alice")
    fetched = bob.client.fetch(made.artifact, force=True)
    shown.sees("#artifacts", "by a trusted publisher")
    shown.sees("#work", "fetch")
    shown.sees("#work", "done in")
    answer = bob.client.ask(fetched.id, "What does it show?", max_tokens=2)
    assert answer.fetched_tokens
    shown.sees("#saved", "tokens were not prefilled, in 1 use")
    page.click("#trust button[data-method=DELETE]")
    shown.sure()
    shown.sees_not("#trust", "alice")
    assert bob.client.trust_ls().publishers == []


def test_a_peer_is_blocked_and_a_group_made_and_left(nodes: tuple[Daemon, Daemon], show: Callable[..., Shown]) -> None:
    alice, bob = nodes
    peer = str(bob.ready["peer"])
    shown = show(alice)
    page = shown.page
    shown.sees("#peers", "connected")
    page.click(f"button[data-url$='{peer}/block']")
    shown.sure()
    shown.sees("#peers", "blocked")
    page.click(f"button[data-url$='{peer}/unblock']")
    shown.sees_not("#peers", "blocked")
    page.fill("#group-name", "circle")
    page.keyboard.press("Enter")
    shown.sees("#groups", "circle")
    page.click("#groups button[data-method=DELETE]")
    shown.sure()
    shown.sees("#groups", "In no group")


def test_an_error_is_told_with_its_hint(nodes: tuple[Daemon, Daemon], show: Callable[..., Shown]) -> None:
    shown = show(nodes[0])
    shown.page.fill("#trust-peer", "nobody")
    shown.page.keyboard.press("Enter")
    shown.sure()
    shown.sees("#problem", "nobody")
    shown.complaints[:] = [one for one in shown.complaints if "400" not in one]  # Chromium's word on the answer


@pytest.mark.parametrize(
    "options",
    [
        {"viewport": {"width": 1100, "height": 900}},
        {"viewport": {"width": 1100, "height": 900}, "color_scheme": "dark"},
        {"viewport": {"width": 360, "height": 800}},
        {"viewport": {"width": 360, "height": 800}, "color_scheme": "dark", "reduced_motion": "reduce"},
    ],
    ids=["wide", "dark", "narrow", "narrow and dark"],
)
def test_nothing_stands_out_and_nobody_is_shut_out(
    nodes: tuple[Daemon, Daemon], show: Callable[..., Shown], options: dict[str, Any], chromium: Any
) -> None:
    nodes[0].client.publish(TEXT + "for everybody")
    shown = show(nodes[0], **options)
    shown.sees("#artifacts", "own")
    assert shown.page.evaluate("document.documentElement.scrollWidth") == options["viewport"]["width"]
    found = axe.Axe().run(shown.page)
    assert found.violations_count == 0, found.generate_report()


def test_the_keyboard_reaches_what_the_mouse_does(nodes: tuple[Daemon, Daemon], show: Callable[..., Shown]) -> None:
    shown = show(nodes[0])
    page = shown.page
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "(document.activeElement.id || document.activeElement.dataset.url ||"
                " document.activeElement.getAttribute('href') || '')"
            )
        )
    assert {"text", "file", "group", "q", "trust-peer", "group-name", "#log-title"} <= reached
    page.focus("#text")
    page.keyboard.type("x")
    page.keyboard.press("Control+Home")
    page.click("#publish button")
    assert page.evaluate("document.activeElement.value") == "no"  # Enter does nothing that cannot be undone
    page.keyboard.press("Escape")
    assert not page.is_visible("#sure")


ATTACK = """<!doctype html><title>attack</title><body><iframe src="{url}"></iframe><script>
const said = [];
async function go(name, what) {{ try {{ said.push(name + ":" + await what()); }} catch (e) {{ said.push(name + ":no"); }} }}
(async () => {{
  await go("read", async () => (await fetch("{url}", {{credentials: "include"}})).status);
  await go("write", async () => (await fetch("{url}v1/trust", {{method: "POST", credentials: "include",
    headers: {{"Content-Type": "application/json", "Kvswap-Page": "x"}}, body: "{{}}"}})).status);
  await go("simple", async () => (await fetch("{url}v1/trust", {{method: "POST", mode: "no-cors", credentials: "include",
    body: '{{"peer": "{peer}"}}'}})).type);
  await go("cookie", async () => document.cookie || "none");
  document.title = said.join(" ");
}})();
</script><form method="post" action="{url}v1/trust"><input name="peer" value="{peer}"></form>"""


def test_a_page_on_another_port_learns_and_changes_nothing(nodes: tuple[Daemon, Daemon], chromium: Any) -> None:
    alice, bob = nodes
    seen: list[str] = []
    html = ""

    class Attacker(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Cookie", ""))
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Attacker)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    shown = Shown(chromium, alice)
    try:
        url = shown.page.url
        html = ATTACK.format(url=url, peer=bob.publisher)
        port = server.server_address[1]
        for host in ("127.0.0.1", "localhost", "other.localhost"):
            page = shown.context.new_page()
            page.goto(f"http://{host}:{port}/")
            playwright.expect(page).not_to_have_title("attack", timeout=5 * MINUTE)
            assert page.title() == "read:no write:no simple:no cookie:none", (host, page.title())
            assert page.frames[1].locator("#saved-title").count() == 0  # not in a frame
            with page.expect_navigation():
                page.evaluate("document.forms[0].submit()")
            assert page.locator("#saved-title").count() == 0
            page.goto(f"http://{host}:{port}/")
            with page.expect_navigation():
                page.evaluate(f"location.href = '{url}'")
            assert page.locator("#saved-title").count() == 0
        assert alice.client.trust_ls().publishers == []
        assert seen and not any("kvswap" in cookie for cookie in seen)
    finally:
        shown.context.close()
        server.shutdown()
        server.server_close()


def test_fifty_events_a_second_move_nobody_who_types(nodes: tuple[Daemon, Daemon], show: Callable[..., Shown]) -> None:
    alice, _ = nodes
    shown = show(alice)
    page = shown.page
    page.focus("#trust-label")
    page.keyboard.type("half a wo")
    for number in range(20):
        alice.client.block(str(nodes[1].ready["peer"]), blocked=bool(number % 2 == 0))
    shown.sees("#log", "unblocked")
    page.keyboard.type("rd")
    assert page.input_value("#trust-label") == "half a word"
