"""Makes docs/page.png: the local page of a node that fetched, asked and trusts, in Chromium.

    pip install -e ".[browser]"; apt-get install chromium; python docs/tools/page_picture.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from kvswap import Client
from kvswap.core.errors import DaemonNotRunning

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "examples/documents"
QUESTION = "What is this about?"
TOKENS = 8
LETTERS = 6_000


def daemon(home: Path, *more: str) -> Client:
    """Start a node and wait until it answers."""
    command = [sys.executable, "-m", "kvswap", "--home", str(home), "-q", "daemon", "--no-mdns", *more]
    subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while True:
        try:
            client = Client(home)
            client.status()
            return client
        except DaemonNotRunning:
            time.sleep(0.2)


def main() -> int:
    """Make the picture."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        print("Chromium is needed: apt-get install chromium", file=sys.stderr)
        return 1
    texts = [path.read_text()[:LETTERS] for path in sorted(DOCUMENT.iterdir()) if path.suffix in (".txt", ".rst")]
    with tempfile.TemporaryDirectory() as directory:
        ada = daemon(Path(directory) / "ada")
        try:
            address = ada.id().addresses[0]
            bob = daemon(Path(directory) / "bob", "--bootstrap", address)
            try:
                picture(ada, bob, texts, chromium)
            finally:
                bob.stop()
        finally:
            ada.stop()
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
        page.screenshot(path=str(ROOT / "docs/page.png"), full_page=True)
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
