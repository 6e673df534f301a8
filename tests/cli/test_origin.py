"""`kvswap push` and `kvswap origin`: two homes without a network, and a directory between them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kvswap import AsyncClient
from kvswap.cli.commands.origin import url_of
from kvswap.cli.main import main
from kvswap.core.errors import OriginError, UsageError
from tests.exchange.test_fetch import DOCUMENT
from tests.support import Daemon, Ingested, key, kvswap, last_json, make_artifact, run, stock


@pytest.fixture
def made() -> Ingested:
    return make_artifact(tokens=100)


@pytest.fixture
def pair(daemon: Callable[..., Daemon], tmp_path: Path, made: Ingested) -> tuple[Daemon, Daemon]:
    """A node that has an artifact, and one that has nothing and a setting that names the directory."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "share").mkdir()
    stock(tmp_path / "a", made)
    (tmp_path / "b" / "config.toml").write_text(f'[[origins]]\nurl = "file://{tmp_path}/share"\nprice_per_gb = 0.01\n')
    return daemon("a", "--no-p2p"), daemon("b", "--no-p2p", KVSWAP_MODELS=str(tmp_path / "models"))


def test_from_one_home_to_another_by_a_directory(pair: tuple[Daemon, Daemon], made: Ingested, tmp_path: Path) -> None:
    a, b = pair
    share = str(tmp_path / "share")
    tested = kvswap(a.home, "origin", "test", share)
    assert tested.returncode == 0 and tested.stdout.count("yes") == 3, tested.stderr
    pushed = kvswap(a.home, "push", DOCUMENT, share)
    assert pushed.returncode == 0, pushed.stderr
    assert pushed.stdout.startswith(made.id) and f"file://{share}" in pushed.stdout
    assert f"kvswap origin add file://{share}" in pushed.stderr and "http" not in pushed.stderr
    again = last_json(kvswap(a.home, "push", made.id, share, "--json"))
    assert again["uploaded"] == 0 and again["files"] == len(made.chunks)
    b.client.trust_add(str(key().peer_id))
    fetched = kvswap(b.home, "fetch", DOCUMENT)
    assert fetched.returncode == 0 and "from 1 origin(s)" in fetched.stdout, fetched.stderr
    (row,) = last_json(kvswap(b.home, "origin", "ls", "--json"))["origins"]
    assert row["url"] == f"file://{share}" and row["configured"] and row["bytes_in"] > 0 and row["price_per_gb"] == 0.01
    assert b.client.peers() == []  # an origin is none
    assert "ORIGIN" in kvswap(b.home, "origin", "ls").stdout
    refused = kvswap(b.home, "origin", "rm", share)
    assert refused.returncode == 2 and "config.toml" in refused.stderr
    (setting,) = [s for s in b.client.config().settings if s.name == "origins"]
    assert setting.value == [{"url": f"file://{share}", "price_per_gb": 0.01}]


def test_origins_are_added_kept_and_removed(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    node = daemon("a", "--no-p2p")
    share = tmp_path / "share"
    added = kvswap(node.home, "origin", "add", str(share), "--write")
    assert added.returncode == 0 and "is not there" in added.stderr and "kvswap push goes" in added.stdout
    share.mkdir()
    plain = kvswap(node.home, "origin", "add", "http://127.0.0.1:1/kv", "--price-per-gb", "0.02")
    assert "http" in plain.stderr and "was not reached" in plain.stderr
    node.stop()
    node.start()
    assert [(o.url, o.write, o.plain) for o in node.client.origins()] == [
        (f"file://{share}", True, False),
        ("http://127.0.0.1:1/kv", False, True),
    ]
    assert node.client.origin_test("http://127.0.0.1:1/kv").problem
    assert kvswap(node.home, "origin", "test", "http://127.0.0.1:1/kv").returncode == 9
    with pytest.raises(OriginError):
        (tmp_path / "share").rmdir()
        stock_push(node)

    async def body() -> None:
        async with AsyncClient(node.home) as client:
            assert (await client.origin_rm(f"file://{share}")).removed
            assert [o.url for o in await client.origins()] == ["http://127.0.0.1:1/kv"]

    run(body())
    assert kvswap(node.home, "origin", "rm", str(share)).returncode == 5


def stock_push(node: Daemon) -> None:
    """Import an artifact and push it where one pushes by default."""
    from tests.exchange.test_archives import archive_of

    made = make_artifact(tokens=40)
    (node.home / "a.tar").write_bytes(archive_of(made))
    node.client.import_(node.home / "a.tar")
    node.client.push(made.id)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("push", 2),
        (f"push {DOCUMENT} ftp://x/y", 2),
        (f"push {DOCUMENT} https://user@x/y", 2),
        ("origin add file://relative", 2),
        ("origin add s3://UPPER/x", 2),
        ("origin ls", 10),
    ],
)
def test_what_is_wrong_is_told(words: str, code: int, tmp_path: Path) -> None:
    assert main(["--home", str(tmp_path), *words.split()]) == code


def test_a_path_stands_for_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert url_of("./a b") == f"file://{tmp_path}/a%20b"
    with pytest.raises(UsageError):
        url_of("file:///a/../b")
