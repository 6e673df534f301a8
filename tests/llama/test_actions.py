"""What clients do to slots: damaged and foreign slot files never reach the server."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.llama.proxies import Proxy, document

Start = Callable[..., Proxy]
GOLDEN = Path(__file__).parent.parent / "integrations" / "llamacpp" / "golden"


def act(proxy: Proxy, action: str, name: str = "mine.bin", slot: int = 0) -> tuple[int, Any]:
    status, _, text = proxy.ask(f"/slots/{slot}?action={action}", {"filename": name})
    return status, json.loads(text)


def test_without_a_directory_of_the_user_there_are_no_slot_files(proxy: Start, ggufs: dict[str, Path]) -> None:
    one = proxy(ggufs["dense"])
    status, answer = act(one, "save")
    assert status == 501 and answer["error"]["type"] == "not_supported_error"
    assert act(one, "restore")[0] == 501 and act(one, "erase")[0] == 200
    assert one.counts()["refused_actions"] == 2


def test_what_was_saved_here_is_restored_and_goes_on(proxy: Start, ggufs: dict[str, Path], tmp_path: Path) -> None:
    one = proxy(ggufs["dense"], "--slot-save-path", str(tmp_path / "slots"), "--cache-ram", "0")
    text = document(100)
    one.complete(text, 0)
    assert act(one, "save")[0] == 200
    one.complete("something else", 0)
    one.until_saved()
    assert act(one, "restore")[0] == 200
    assert one.complete(text + "x", 1)["timings"]["cache_n"] > 500
    one.restart()
    assert act(one, "restore")[0] == 200, "also by another process of this home"
    assert sorted(path.name for path in (tmp_path / "slots").iterdir()) == ["mine.bin"]


def test_damaged_and_foreign_files_are_refused_and_the_server_lives(
    proxy: Start, ggufs: dict[str, Path], tmp_path: Path
) -> None:
    """100 files that are cut off, changed or of another model, and 1,000 that are changed at random."""
    slots = tmp_path / "slots"
    one = proxy(ggufs["dense"], "--slot-save-path", str(slots))
    answer = one.complete(document(100), 8)
    assert act(one, "save")[0] == 200
    one.until_saved()
    pid = one.server_pid()
    right = (slots / "mine.bin").read_bytes()
    rng = random.Random(21)
    files = [right[:at] for at in (0, 1, 4, 8, 12, 100, len(right) // 2, len(right) - 1)]
    files += [right + b"x", b"", b"\0" * 100, os.urandom(4096)]
    files += [path.read_bytes() for path in sorted(GOLDEN.glob("*.bin"))]
    while len(files) < 100:
        files.append(right[: rng.randrange(len(right))])
    for _ in range(1_000):
        data = bytearray(right)
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(len(data) if rng.random() < 0.5 else 800)] ^= 1 << rng.randrange(8)
        files.append(bytes(data))
    for number, data in enumerate(files):
        if data == right:
            continue
        (slots / "other.bin").write_bytes(data)
        status, said = act(one, "restore", "other.bin")
        assert status == 400, (number, said)
        assert "not restored" in said["error"]["message"]
    assert one.server_pid() == pid and one.counts()["server_starts"] == 1
    for name in ("../mine.bin", "", "nothing.bin", ".", "a\0b"):
        assert act(one, "restore", name)[0] == 400
    again = one.complete(document(100), 8)
    assert again["tokens"] == answer["tokens"]
    status, said = act(one, "restore")
    assert status == 200, said
