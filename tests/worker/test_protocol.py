from __future__ import annotations

import io
import socket
import subprocess
import sys

import pytest

from kvswap.core.errors import MalformedMessage
from kvswap.worker import protocol, start


def test_frames_round_trip_and_end_cleanly() -> None:
    stream = io.BytesIO(protocol.frame({"job": "x", "data": b"\0" * 10}) + protocol.frame({"cancel": True}))
    assert protocol.read(stream) == {"job": "x", "data": b"\0" * 10}
    assert protocol.read(stream) == {"cancel": True}
    assert protocol.read(stream) is None
    assert protocol.read(io.BytesIO(protocol.frame({"a": 1})[:-1])) is None


def test_oversized_and_malformed_frames_are_refused() -> None:
    with pytest.raises(MalformedMessage):
        protocol.read(io.BytesIO(b"\xff\xff\xff\xff"))
    with pytest.raises(MalformedMessage):
        protocol.read(io.BytesIO(b"\0\0\0\1\xc1"))
    with pytest.raises(MalformedMessage):
        protocol.read(io.BytesIO(b"\0\0\0\1\5"))


def test_the_process_answers_errors_and_ends_with_its_input() -> None:
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-P", start.__file__, str(theirs.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(theirs.fileno(),),
    )
    theirs.close()
    stream = ours.makefile("rb")
    for request, code in (
        ({"job": "nonsense"}, "usage"),
        ({"job": "tokenize", "text": "x", "block_tokens": 4}, "worker_failed"),
        ({"job": "tokenize"}, "worker_failed"),
        (
            {"job": "open", "directory": "/nonexistent", "label": "x", "dtype": "int8", "device": "cpu", "threads": 0},
            "usage",
        ),
    ):
        ours.sendall(protocol.frame(request))
        answer = protocol.read(stream)  # type: ignore[arg-type]
        while answer is not None and "event" in answer:
            answer = protocol.read(stream)  # type: ignore[arg-type]
        assert answer is not None and answer["error"]["code"] == code
    ours.shutdown(socket.SHUT_WR)
    assert process.wait(600) == 0
    stream.close()
    ours.close()
