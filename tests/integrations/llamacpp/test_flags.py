"""llama-server's flags: what the proxy takes of them, and what the bundled server understands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kvswap.core.errors import UsageError
from kvswap.integrations.llamacpp.proxy.flags import ServerFlags, read_bundled
from kvswap.integrations.llamacpp.proxy.launch import find_server, free_port


def test_the_address_is_the_proxys_and_the_rest_the_servers() -> None:
    words = (
        "-m",
        "x.gguf",
        "--host",
        "::1",
        "--port",
        "9000",
        "-ngl",
        "99",
        "-kvu",
        "--slot-save-path",
        "/s",
        "--api-key",
        "k",
    )
    flags = ServerFlags.read(words, {})
    assert (flags.host, flags.port, flags.model) == ("::1", 9000, Path("x.gguf"))
    assert flags.arguments == ("-m", "x.gguf", "-ngl", "99", "-kvu", "--api-key", "k")
    assert (flags.slot_directory, flags.api_key, flags.not_kept) == (Path("/s"), "k", "")


def test_the_environment_is_read_and_flags_win() -> None:
    env = {"LLAMA_ARG_PORT": "7000", "LLAMA_API_KEY": "secret", "LLAMA_ARG_HOST": "0.0.0.0"}
    assert ServerFlags.read((), env).port == 7000
    assert ServerFlags.read(("--port", "1"), env).port == 1
    assert ServerFlags.read((), env).api_key == "secret" and ServerFlags.read((), env).host == "0.0.0.0"
    assert (ServerFlags.read((), {}).host, ServerFlags.read((), {}).port) == ("127.0.0.1", 8080)


def test_the_first_key_of_a_file_is_used(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("one\ntwo\n")
    assert ServerFlags.read(("--api-key-file", str(tmp_path / "keys")), {}).api_key == "one"


@pytest.mark.parametrize(
    ("words", "env", "named"),
    [
        (("--context-shift",), {}, "--context-shift"),
        (("--cache-reuse", "256"), {}, "--cache-reuse"),
        (("--cache-reuse", "0"), {}, ""),
        (("-gan", "4"), {}, "-gan"),
        (("-gan", "1"), {}, ""),
        (("--no-slots", "-c", "9"), {}, "--no-slots"),
        ((), {"LLAMA_ARG_CACHE_REUSE": "64"}, "--cache-reuse"),
        ((), {"LLAMA_ARG_CACHE_REUSE": "0"}, ""),
        ((), {"LLAMA_ARG_CONTEXT_SHIFT": "true"}, "--context-shift"),
    ],
)
def test_what_forbids_keeping_is_named(words: tuple[str, ...], env: dict[str, str], named: str) -> None:
    assert ServerFlags.read(words, env).not_kept == named


@pytest.mark.parametrize(
    "words", [("--port",), ("--port", "x"), ("--port", "70000"), ("--ssl-key-file", "k"), ("--models-dir", "d")]
)
def test_what_cannot_be_is_refused_by_name(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        ServerFlags.read(words, {})


def test_the_bundled_server_names_what_it_has_not() -> None:
    read = read_bundled(
        (
            "-m",
            "x",
            "-np",
            "2",
            "-fa",
            "off",
            "-ctk",
            "q8_0",
            "--swa-full",
            "--no-jinja",
            "-ngl",
            "auto",
            "--temp",
            "0.5",
        )
    )
    assert [(flag.parameter, value) for flag, value in read] == [
        ("model.path", "x"),
        ("n_parallel", 2),
        ("flash_attn_type", "DISABLED"),
        ("cache_type_k", "Q8_0"),
        ("swa_full", True),
        ("use_jinja", False),
        ("n_gpu_layers", -1),
        ("sampling.temp", 0.5),
    ]
    for words in (("--mlock",), ("-np", "two"), ("-np",), ("-ctk", "q9"), ("-fa", "perhaps")):
        with pytest.raises(UsageError, match=words[0]):
            read_bundled(words)


def test_a_server_is_found_in_path_or_said_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises((UsageError, ValueError)):
        find_server(None, ())
    with pytest.raises(UsageError, match="no program"):
        find_server("llama-cli", ())
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert find_server(None, ("--anything",)) == [str(program)]
    assert 0 < free_port() < 65_536
