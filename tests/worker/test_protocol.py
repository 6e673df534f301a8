from __future__ import annotations

import io
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

import pytest

from kvswap.core.errors import MalformedMessage
from kvswap.worker import protocol, start
from kvswap.worker.conversation import LogFrame, sign_of_life


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


@contextmanager
def a_process() -> Iterator[tuple[subprocess.Popen[bytes], socket.socket, BinaryIO]]:
    """A model process, the socket to it, and what comes from it; it has to end by itself."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-P", start.__file__, str(theirs.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(theirs.fileno(),),
    )
    theirs.close()
    with ours, ours.makefile("rb") as stream:
        yield process, ours, cast(BinaryIO, stream)
        assert process.wait(600) == 0


def test_what_a_process_cannot_read_ends_it_and_is_in_the_log() -> None:
    with a_process() as (_, ours, stream):
        ours.sendall(protocol.frame({"tell": {"tell": "unit", "unit": "three"}}))
        said = list(iter(lambda: protocol.read(stream), None))
    assert any(
        isinstance(sign_of_life(m), LogFrame) and "cannot be read" in str(m) and "unit" in str(m) for m in said
    ), said


def test_the_process_answers_errors_and_ends_with_its_input() -> None:
    with a_process() as (_, ours, stream):
        _ask_wrongly(ours, stream)
        ours.shutdown(socket.SHUT_WR)


def _ask_wrongly(ours: socket.socket, stream: BinaryIO) -> None:
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
        answer = protocol.read(stream)
        while answer is not None and "event" in answer:
            answer = protocol.read(stream)
        assert answer is not None and answer["error"]["code"] == code
