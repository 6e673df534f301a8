"""What short commands cost, counted: modules, statements and bytes are the same on every machine."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient
from click.testing import CliRunner

from kvswap.cli.main import cli
from kvswap.store.index import Index
from tests.daemon.test_state import HEADERS, served
from tests.exchange.test_fetch import world
from tests.store.large import fill
from tests.support import run

# An import is most of what `status` costs.  The numbers are what they load today, and a little room.
MODULES = {"status": 180, "ls": 180, "peers": 180, "rm x -y": 180, "fetch bafk": 200}
NEVER = (
    *("torch", "transformers", "aiohttp", "asyncio", "libp2p", "trio", "numpy", "rich", "sqlite3", "cryptography"),
    *("logging", "tempfile", "shutil", "subprocess", "tomllib", "kvswap.cost.estimate", "kvswap.cost.split"),
)
ROW_BYTES = 600  # of one artifact in the answer to `ls`


@pytest.mark.parametrize("verb", MODULES)
def test_a_short_command_loads_little(verb: str) -> None:
    script = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "from kvswap.cli.main import main\n"
        f"main({[*verb.split(), '--home', '/nonexistent']!r})\n"
        "new = set(sys.modules) - before\n"
        f"print(len(new), *sorted(new & set({NEVER!r})))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout, done.stderr
    number, *heavy = done.stdout.splitlines()[-1].split()
    assert heavy == [] and int(number) <= MODULES[verb], done.stdout


def test_garbage_is_collected_again_before_a_verb_runs() -> None:
    """A daemon that never collected would grow without end."""
    gc.disable()
    try:
        CliRunner().invoke(cli, ["status", "--home", "/nonexistent"])
        assert gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("artifacts", [500, 1_500])
def test_statements_and_bytes_of_a_large_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, artifacts: int) -> None:
    """`status` asks the database the same however much is there; `ls` three times for each page of 500."""
    fill(tmp_path / "0", artifacts, 2, files=False)
    asked: list[str] = []
    rows = Index.rows

    def counted(self: Index, query: str, *arguments: object) -> list:
        asked.append(query)
        return rows(self, query, *arguments)

    async def body() -> None:
        async with world(tmp_path) as w:
            node = await w.node()
            async with TestClient(served(node)) as client:

                async def counts(path: str) -> tuple[int, bytes]:
                    asked.clear()
                    async with client.get(path, headers=HEADERS) as response:
                        told = await response.read()
                        assert response.status == 200, told
                    return len(asked), told

                number, told = await counts("/v1/status")
                assert number <= 2 and json.loads(told)["artifacts"] == artifacts and len(told) < 16_000
                number, told = await counts("/v1/artifacts")
                assert len(json.loads(told)["artifacts"]) == artifacts
                assert number <= 3 * (artifacts // 500 + 1) and len(told) <= ROW_BYTES * artifacts

    monkeypatch.setattr(Index, "rows", counted)
    run(body())
