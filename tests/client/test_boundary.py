"""What a daemon may do to a client, generated over both clients: frozen, gone, not a daemon, cut off, not JSON."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvswap import AsyncClient, Client
from kvswap.api import AskRequest, OtherEvent
from kvswap.client import answers, calls
from kvswap.core.errors import DaemonNotRunning, DaemonSilent, InvalidDocument, KvswapError, NotFound, UsageError
from kvswap.core.runfile import RunFile
from tests.core.test_failures import is_told

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
LINES = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n"
BEATS = b"Kvswap-Heartbeat: 0.001\r\n"
REF = "sha256:" + "0" * 64


def chunk(value: Any) -> bytes:
    line = value if isinstance(value, bytes) else json.dumps(value).encode() + b"\n"
    return b"%x\r\n%s\r\n" % (len(line), line)


def whole(value: Any, status: bytes = b"200 OK") -> bytes:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


class Server:
    """Answers every connection with some bytes, and then closes it, resets it, or says nothing more."""

    def __init__(self, home: Path, answer: bytes, then: str = "close") -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._answer, self._then = answer, then
        self._open: list[socket.socket] = []
        RunFile(f"http://127.0.0.1:{self._socket.getsockname()[1]}", "t", os.getpid()).write(home)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            if self._then == "reset at once":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                connection.close()
                continue
            asked = b""
            while b"\r\n\r\n" not in asked and (piece := connection.recv(1 << 16)):
                asked += piece
            connection.sendall(self._answer)
            if self._then == "silence":
                self._open.append(connection)
            else:
                connection.shutdown(socket.SHUT_WR)
                connection.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()
        for connection in self._open:
            connection.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    made: list[Server] = []

    def start(answer: bytes, then: str = "close") -> Path:
        made.append(Server(tmp_path, answer, then))
        return tmp_path

    yield start
    for one in made:
        one.close()


def do(kind: str, home: Path, verb: str, *arguments: Any, **options: Any) -> Any:
    if kind == "sync":
        return getattr(Client(home), verb)(*arguments, **options)

    async def work() -> Any:
        return await getattr(AsyncClient(home), verb)(*arguments, **options)

    return asyncio.run(work())


# name -> what the server sends, what it does then, exit code
WRONG: dict[str, tuple[bytes, str, int]] = {
    "nothing": (b"", "close", 1),
    "reset": (b"", "reset at once", 1),
    "no http": (b"SSH-2.0-OpenSSH_9.6\r\n", "close", 10),
    "half a head": (b"HTTP/1.1 200 O", "close", 1),
    "html": (whole(b"<html>not found</html>", b"404 Not Found"), "close", 10),
    "html, 200": (whole(b"<html>hello</html>"), "close", 10),
    "empty": (whole(b""), "close", 10),
    "a list": (whole([1]), "close", 10),
    "not utf-8": (whole(b"\xff\xfe"), "close", 10),
    "deep": (whole(b"[" * 100_000), "close", 10),
    "error without words": (whole({"x": 1}, b"500 Oops"), "close", 1),
    "error of the future": (whole({"error": {"code": "future", "message": "m"}}, b"500 Oops"), "close", 1),
    "error of wrong types": (
        whole({"error": {"code": [], "message": 1, "cause": {}, "hint": 3, "details": {"message": 1}}}, b"500 Oops"),
        "close",
        1,
    ),
    "half a body": (HEAD + b"Content-Length: 100\r\n\r\n{", "close", 1),
    "wrong length": (HEAD + b"Content-Length: many\r\n\r\n{", "close", 10),
}
STREAMS: dict[str, tuple[bytes, str, int]] = {
    "ends at once": (LINES + b"\r\n0\r\n\r\n", "close", 1),
    "cut off": (LINES + b"\r\n" + chunk({"event": "x"}), "close", 1),
    "not json": (LINES + b"\r\n" + chunk(b"<html>\n") + b"0\r\n\r\n", "close", 10),
    "not utf-8": (LINES + b"\r\n" + chunk(b"\xff\n") + b"0\r\n\r\n", "close", 10),
    "a number": (LINES + b"\r\n" + chunk(3) + b"0\r\n\r\n", "close", 10),
    "a result that is none": (LINES + b"\r\n" + chunk({"result": 3}) + b"0\r\n\r\n", "close", 10),
    "neither": (LINES + b"\r\n" + chunk({"x": 3}) + b"0\r\n\r\n", "close", 10),
    "an error": (LINES + b"\r\n" + chunk({"error": {"code": "not_found", "message": "m"}}), "close", 5),
    "an error that is none": (LINES + b"\r\n" + chunk({"error": 7}), "close", 1),
    "silence": (LINES + BEATS + b"\r\n" + chunk({"event": "x"}), "silence", 10),
    "frozen": (b"", "silence", 10),
}


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("name", WRONG)
def test_an_answer_that_is_none_is_told(kind: str, name: str, server: Callable[..., Path]) -> None:
    answer, then, code = WRONG[name]
    home = server(answer, then)
    with pytest.raises(KvswapError) as caught:
        do(kind, home, "status")
    codes = {code, 10} if name in ("reset", "half a head") else {code}  # a reset may come before we are connected
    assert caught.value.exit_code in codes, caught.value.message
    if "error of" not in name:  # those are the daemon's words
        is_told(caught.value)


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("name", STREAMS)
def test_lines_that_are_none_are_told(
    kind: str, name: str, server: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, then, code = STREAMS[name]
    monkeypatch.setattr(calls, "SHORT_SECONDS", 0.2)
    monkeypatch.setattr(answers, "SHORT_SECONDS", 0.2)
    home = server(answer, then)
    with pytest.raises(KvswapError) as caught:
        do(kind, home, "ask", REF, "q")
    assert caught.value.exit_code == code, caught.value.message
    if then == "silence":
        assert isinstance(caught.value, DaemonSilent) and "does not answer" in caught.value.message
    if code != 5:
        is_told(caught.value)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_frozen_daemon_is_told_by_a_short_call_too(
    kind: str, server: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls.Call, "head_seconds", 0.2)
    with pytest.raises(DaemonSilent) as caught:
        do(kind, server(b"", "silence"), "artifacts")
    assert caught.value.exit_code == 10
    is_told(caught.value)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_heartbeats_are_no_events_and_keep_it_alive(kind: str, server: Callable[..., Path]) -> None:
    beat, seen = chunk({"event": "heartbeat"}), []
    done = {"model": "m", "predictor": "p", "bytes": 1, "tokens": 2}
    home = server(LINES + BEATS + b"\r\n" + 3 * beat + chunk({"event": "x", "y": 1}) + beat + chunk({"result": done}))
    assert do(kind, home, "codec_train", "corpus", on_event=seen.append).to_json() == done
    assert seen == [OtherEvent(kind="x", more={"y": 1})]


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("result", [{}, {"a": 1}, {"model": 1, "predictor": "p", "bytes": 1, "tokens": 2}], ids=str)
def test_a_result_of_another_form_is_no_daemons(kind: str, result: dict[str, Any], server: Callable[..., Path]) -> None:
    home = server(LINES + b"\r\n" + chunk({"result": result}))
    with pytest.raises(DaemonNotRunning, match="not a kvswap daemon"):
        do(kind, home, "codec_train", "corpus")


def test_a_daemon_without_heartbeats_may_be_silent_for_long() -> None:
    long = calls.ask(AskRequest(ref=REF, question="q"))
    assert answers.silence_seconds(long, None) == answers.silence_seconds(long, "soon") == calls.LONG_SECONDS
    assert answers.silence_seconds(long, "3") == 30
    assert answers.silence_seconds(long, "nan") == answers.silence_seconds(long, "-1") == calls.LONG_SECONDS


CALLERS = [BrokenPipeError(32, "Broken pipe"), TimeoutError(), ConnectionResetError(), KeyError("x"), NotFound("mine")]


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("error", CALLERS, ids=lambda e: type(e).__name__)
def test_what_a_callback_raises_goes_out_unchanged(kind: str, error: Exception, server: Callable[..., Path]) -> None:
    def fail(event: dict[str, Any]) -> None:
        raise error

    home = server(LINES + b"\r\n" + chunk({"event": "x"}) + chunk({"result": {}}))
    with pytest.raises(type(error)) as caught:
        do(kind, home, "ask", REF, "q", on_event=fail)
    assert caught.value is error


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("error", CALLERS, ids=lambda e: type(e).__name__)
def test_what_a_callers_frames_raise_goes_out_unchanged(
    kind: str, error: Exception, server: Callable[..., Path]
) -> None:
    def frames() -> Iterator[bytes]:
        yield b"one"
        raise error

    home = server(LINES + b"\r\n" + chunk({"event": "x"}), "silence")
    with pytest.raises(type(error)) as caught:
        do(kind, home, "publish_computed", frames())
    assert caught.value is error


RUN_FILES = {
    "empty": "",
    "no json": "{broken",
    "deep": "[" * 100_000,
    "a list": "[]",
    "no url": '{"url": "", "token": "x", "pid": 1}',
    "another scheme": '{"url": "file:///etc/passwd", "token": "x", "pid": 1}',
    "another machine": '{"url": "http://192.0.2.1:80", "token": "x", "pid": 1}',
    "no port": '{"url": "http://127.0.0.1:99999", "token": "x", "pid": 1}',
    "header in the token": '{"url": "http://127.0.0.1:1", "token": "x\\r\\nA: b", "pid": 1}',
    "huge pid": '{"url": "http://127.0.0.1:1", "token": "x", "pid": 1' + "0" * 30 + "}",
    "group's pid": '{"url": "http://127.0.0.1:1", "token": "x", "pid": -1}',
    "not utf-8": b"\xff\xfe",
}


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("name", [*RUN_FILES, "a directory", "a pipe", "a link to itself"])
def test_a_run_file_that_is_none_is_no_daemon(kind: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "daemon.json"
    if name == "a directory":
        path.mkdir()
    elif name == "a pipe":
        os.mkfifo(path)
    elif name == "a link to itself":
        path.symlink_to(path)
    else:
        text = RUN_FILES[name]
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DaemonNotRunning) as caught:
        do(kind, tmp_path, "status")
    assert caught.value.exit_code == 10
    is_told(caught.value)


def test_a_run_file_in_a_home_without_room_lies_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    home = tmp_path / "nothing" / "that exists"
    RunFile("http://127.0.0.1:9", "t", os.getpid()).write(home)
    assert RunFile.read(home).token == "t"
    with pytest.raises(DaemonNotRunning):
        RunFile.read(tmp_path)
    (tmp_path / "run" / "kvswap").chmod(0o777)  # then it might be somebody else's
    with pytest.raises(DaemonNotRunning):
        RunFile.read(home)
    (tmp_path / "run" / "kvswap").chmod(0o700)
    RunFile.remove(home)
    with pytest.raises(DaemonNotRunning):
        RunFile.read(home)


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("text", ["", " \n\t", "\u2003\u00a0", "\0", "a\0b", "\ud800", "q\udcff"])
def test_prefix_refuses_what_publish_refuses(kind: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidDocument) as caught:
        do(kind, tmp_path, "prefix", text, None, None)
    assert caught.value.exit_code == 2
    is_told(caught.value)


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("verb", ["show", "remove", "pin", "trust_remove", "group_export", "host_leave", "block"])
def test_a_reference_that_is_no_unicode_is_told(kind: str, verb: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        do(kind, tmp_path, verb, "x\udcff")
    is_told(caught.value)
