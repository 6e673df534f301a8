"""Makes docs/page.png: the local page of a node that fetched, asked and trusts, in Chromium.

pip install -e ".[browser]"; apt-get install chromium; python docs/tools/page_picture.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from kvswap import Client
from kvswap.core.errors import DaemonNotRunning

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "examples/documents"
QUESTION = "What is this about?"
TOKENS = 8
LETTERS = 6_000
CLIP = {"x": 0, "y": 0, "width": 1000, "height": 1480}


@contextmanager
def daemon(home: Path, *more: str) -> Iterator[Client]:
    """Run a node while this is open; begins when it answers, and ends when it has ended."""
    command = [sys.executable, "-m", "kvswap", "--home", str(home), "-q", "daemon", "--no-mdns", *more]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    client = Client(home)
    try:
        while True:
            try:
                client.status()
                break
            except DaemonNotRunning:
                time.sleep(0.2)
        yield client
    finally:
        process.terminate()
        process.wait()


def main() -> int:
    """Make the picture."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("Chromium is needed: apt-get install chromium", file=sys.stderr)
        return 1
    texts = [path.read_text()[:LETTERS] for path in sorted(DOCUMENT.iterdir()) if path.suffix in (".txt", ".rst")]
    with tempfile.TemporaryDirectory(prefix="kvswap-") as directory:
        root = Path(directory)
        with daemon(root / "ada") as ada, daemon(root / "bob", "--bootstrap", ada.id().addresses[0]) as bob:
            picture(ada, bob, texts, chromium)
    return 0


def picture(ada: Client, bob: Client, texts: list[str], chromium: str) -> None:
    """Let Bob fetch what Ada published, ask about it, and look at his page."""
    bob.trust_add(ada.id().publisher, "ada")
    for text in texts[:1]:
        made = ada.publish(text, source="https://docs.example.org/manual.txt")
        bob.fetch(made.artifact, force=True)
        bob.ask(made.artifact, QUESTION, max_tokens=TOKENS, text=text)
    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 800})
        page.goto(bob.ui().url)
        expect(page.locator("#saved")).to_contain_text("tokens were not prefilled")
        page.locator("#artifacts-title").scroll_into_view_if_needed()
        page.screenshot(path=str(ROOT / "docs/page.png"), full_page=True, clip=CLIP)
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
