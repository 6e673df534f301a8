"""Loops without an end of their own go through the helper for upkeep, or are named here with the reason why not.

A loop of upkeep that is written by hand ends with the first error that nobody thought of.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import kvswap

ROOT = Path(kvswap.__file__).parent

# file: function -> why its `while True` is none of upkeep: it ends with what it belongs to, and an error is that
# one's to see
ALLOWED = {
    "core/upkeep.py": {"forever": "the helper", "forever_in_thread": "the helper"},
    "net/client.py": {"_exchange": "ends with an answer or an error"},
    "net/bulk/client.py": {"_get": "ends with an answer or an error"},
    "net/bulk/tls.py": {
        "handshake": "one handshake, with a deadline",
        "recv": "one read, with a deadline",
        "_pull": "one read, with a deadline or a time-out",
    },
    "net/bulk/server.py": {
        "_serve": "one connection, whose thread reports nothing but ends",
        "_request": "one request",
    },
    "net/libp2p/mdns.py": {
        "run": "ends with the network part, which is started again",
        "next": "one peer, for a loop of upkeep",
    },
    "net/server.py": {"_read": "one stream"},
    "daemon/child.py": {"_pass_on": "one job", "_end_of_job": "one job"},
    "daemon/requests.py": {"beat": "one answer"},
    "worker/__main__.py": {"main": "the process", "beat": "sends nothing that can fail but to a node that is gone"},
    "worker/training.py": {"_dumped": "one job"},
    "worker/hybrid.py": {"_go": "one job"},
    "exchange/transfer/hybrid.py": {"_report_rate": "one transfer"},
    "exchange/node/events.py": {"follow": "one follower"},
    "exchange/transfer/downloader.py": {
        "_look_again": "one transfer, which ends with its error",
        "_refresh": "one peer of a transfer, which ends with its error",
        "_show": "one transfer, which ends with its error",
    },
    "exchange/discovery/pulling.py": {"cached_prefix_keys": "one request, with a deadline"},
    "host/engine.py": {"ready": "the start of a host, with a deadline"},
    "host/hosted_request.py": {"_take": "one read"},
    "client/sender_aio.py": {
        "lines": "one answer, with a time-out for each line",
        "pieces": "one answer, with a time-out for each piece",
    },
    "exchange/import_archive.py": {"run": "one archive, which ends with its last file"},
    "daemon/page/live.py": {"follow": "one page"},
    "integrations/llamacpp/proxy/run.py": {"_run": "the server of one proxy, which ends with its error"},
    "mcp/progress.py": {"_send": "one call of a tool, whose end cancels it"},
    "origins/files.py": {"_locked": "one write, with a deadline"},
    "origins/s3.py": {"files": "one list, with a time-out for each page", "read_into": "one read, with a time-out"},
    "core/scan.py": {"plain": "one message, of bounded length"},
}


class _Loops(ast.NodeVisitor):
    """Names of the functions that an endless loop stands in."""

    def __init__(self) -> None:
        self.inside: list[str] = []
        self.found: set[str] = set()

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.inside.append(node.name)
        self.generic_visit(node)
        self.inside.pop()

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_While(self, node: ast.While) -> None:
        if _endless(node.test):
            self.found.add(self.inside[-1])
        self.generic_visit(node)


@cache
def endless() -> dict[str, set[str]]:
    """File -> functions with a `while` whose condition is always true, or waits for a flag that others set."""
    out: dict[str, set[str]] = {}
    for path in sorted(ROOT.rglob("*.py")):
        loops = _Loops()
        loops.visit(ast.parse(path.read_text()))
        if loops.found:
            out[str(path.relative_to(ROOT))] = loops.found
    return out


def _endless(test: ast.expr) -> bool:
    if isinstance(test, ast.Constant):
        return bool(test.value)
    text = ast.unparse(test)
    return (text.startswith("not ") and text.endswith(".is_set()")) or text.endswith(".wait()")


def test_every_endless_loop_is_of_the_helper_or_has_a_reason() -> None:
    found = endless()
    unknown = {f"{file}:{name}" for file, names in found.items() for name in names - ALLOWED.get(file, {}).keys()}
    assert not unknown, "use kvswap.core.upkeep.forever, or say here why not"


def test_every_reason_is_of_a_loop_that_is_there() -> None:
    found = endless()
    gone = {f"{file}:{name}" for file, names in ALLOWED.items() for name in names.keys() - found.get(file, set())}
    assert not gone


def test_threads_are_started_where_their_errors_are_seen() -> None:
    """Each `Thread(...)` of the package, by file: a new one has to be thought about."""
    found = {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("threading.Thread", "Thread")
    }
    assert found == {
        "core/log.py",  # it is the log: there is no other place to say what went wrong
        "core/upkeep.py",  # the writer's
        "integrations/llamacpp/proxy/child.py",  # waits for its parent's end, and ends the server
        "integrations/vllm/prefix_filter.py",  # `forever_in_thread`
        "net/libp2p/bridge.py",  # whose end fails every call that waits
        "worker/__main__.py",  # whose end is the process's
    }
