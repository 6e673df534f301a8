"""Every setting by value, generated from the schema: what is wrong is refused at the start with its name and place."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from kvswap import codec
from kvswap.core.directories import home_directory, models_directory
from kvswap.core.errors import InvalidSettings, KvswapError, UsageError
from kvswap.core.settings import CODECS, Settings
from kvswap.model import catalogue
from tests.core.test_failures import is_told
from tests.support import ROOT, kvswap

PEER = "12D3KooWKnDdG3iXw9eTFijk3EWSunZcFi54Zka4wmtqtt6rPxc8"
WHOLE = [-1, 0.5, True, "", "many", "1e3", "9" * 50, [1], {}]
NUMBER = [-1, True, "", "many", float("nan"), float("inf"), float("-inf"), 1e300, "nan", "inf", [1]]
PLACES = ["127.0.0.1:4777", "/", "ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1", "/ip4/300.1.1.1/tcp/1", "/ip4/1.1.1.1/tcp/x"]
PLACES += [
    "/ip4/1.1.1.1/tcp/65536",
    "/ip6/127.0.0.1/tcp/1",
    "/ip4/::1/tcp/1",
    "/nothing/1",
    "/ip4/1.1.1.1/tcp/1/p2p/x",
    "/unix/x",
]
# setting -> (wrong values, right values); numbers below get their bounds from here too
TABLE: dict[str, tuple[list[Any], list[Any]]] = {
    "model": (["", "  ", 5, ["x"], "a\x1bb", "x" * 5000], ["smollm2-135m", "org/name", "/a/b", "./a", "~/a"]),
    "dtype": (["bf16", "", "Float32", 16, ["float32"]], ["bfloat16", "float16", "float32"]),
    "device": (["gpu", "", "cuda:", "cuda:x", 0, "cpu:0"], ["cpu", "mps", "cuda", "cuda:0", "cuda:12"]),
    "log_level": (["INFO", "", "trace", 10, ["info"]], ["debug", "info", "warning", "error"]),
    "log_format": (["JSON", "", "lines", True], ["text", "json"]),
    "threads": ([*WHOLE, 1025, 10**8], [0, 1, 1024, "2"]),
    "block_tokens": ([*WHOLE, 0, 8193], [1, 256, 8192, "64"]),
    "model_processes": ([*WHOLE, 0, 65], [1, 2, 64]),
    "codec": (["plane", "", "PLANES", 1], list(CODECS)),
    "also_codec": (["plane", "none", 1], ["", *CODECS]),
    "group": (["a b", "\x1b", "-x", 5, "x" * 65, "é"], ["", "team", "a.b-c_d"]),
    "listen": ([[p] for p in PLACES] + ["127.0.0.1:4777", 5, [5], [["x"]], {}, ["/dns4/a.b/tcp/1"], [f"/ip4/1.1.1.1/tcp/1/p2p/{PEER}"]],
               [["/ip4/0.0.0.0/tcp/0"], ["/ip6/::/tcp/65535", "/ip4/127.0.0.1/tcp/1"], "/ip4/1.1.1.1/tcp/1,/ip6/::1/tcp/2", [], ""]),
    "origins": ([5, [5], ["x"], "ftp://a.example/kv", "https://a.example/kv?q=1", "s3://B", "file://x", "file:///a/../b", "file:///a,file:///a"],
                ["file:///mnt/share/kv", "https://a.example/kv, s3://bucket/prefix", "", []]),
    "announce": ([[p] for p in PLACES] + [["/ip4/1.1.1.1/tcp/0"], ["/tcp/1"], 5],
                 [["/ip4/192.0.2.1/tcp/4777"], ["/dns4/a.example/tcp/1"], ["/dns/a-b.example./tcp/1"], []]),
    "bootstrap": ([[p] for p in PLACES] + [["/ip4/1.1.1.1/tcp/1"], [f"/ip4/1.1.1.1/tcp/0/p2p/{PEER}"], [f"/p2p/{PEER}"], [f"/ip4/1.1.1.1/tcp/1/p2p/{PEER}x"]],
                  [[f"/ip4/1.1.1.1/tcp/1/p2p/{PEER}"], [f"/ip6/::1/tcp/1/p2p/{PEER}/p2p-circuit/p2p/{PEER}"], [f"/dnsaddr/a.b/p2p/{PEER}"], []]),
    "relays": ([[p] for p in PLACES] + [["/ip4/1.1.1.1/tcp/1"]], [[f"/dns6/a.b/tcp/1/p2p/{PEER}"], []]),
    "upload_bytes_per_second": (WHOLE, [0, 1, 10**12]),
    "quota_bytes": (WHOLE, [0, 1000, 10**15]),
    "bulk_port": ([*WHOLE, 65536, 99999], [0, 1, 65535]),
    "api_port": ([*WHOLE, 65536, 99999], [0, 1, 65535]),
    "idle_unload_seconds": ([*NUMBER, 1e10], [0, 0.5, 600, "1.5", 1e9]),
    "artifact_days": ([*WHOLE, 0, 367, 10**12], [1, 30, 366]),
    "assumed_link_bytes_per_second": ([*NUMBER, 0, 0.5], [1, 12.5e6, "1e9"]),
} | {name: ([*NUMBER, 1e10], [0, 0.0005, 1e9]) for name in
     ("price_per_gb", "asks_per_gb", "price_per_second", "price_per_million_tokens", "value_per_second")
} | {name: (["perhaps", 2, 0.0, "", [], "tru"], [True, False, 1, 0, "yes", "No", "TRUE", "off"]) for name in
     ("relay", "hole_punching", "mdns", "p2p", "bulk")}  # fmt: skip
NAMES = [f.name for f in fields(Settings) if f.name not in ("home", "models")]


def toml(value: Any) -> str | None:
    """A value as config.toml writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\u{ord(c):04x}" for c in value) + '"'
    if isinstance(value, list):
        return "[" + ", ".join(str(toml(v)) for v in value) + "]"
    return "{}" if value == {} else repr(value)


def test_the_table_has_every_setting_and_the_schema_every_check() -> None:
    assert set(TABLE) == set(NAMES)
    assert all("check" in f.metadata for f in fields(Settings) if f.name in NAMES)
    assert set(CODECS) == set(codec.names()) - {"predictive2"}  # asked for by the same word: the predictor decides


@pytest.mark.parametrize("name", NAMES)
def test_every_wrong_value_is_refused_with_its_line_variable_or_option(name: str, tmp_path: Path) -> None:
    for value in TABLE[name][0]:
        (tmp_path / "config.toml").write_text(f"# a comment\n\n  {name} = {toml(value)}\n")
        with pytest.raises(InvalidSettings) as caught:
            Settings.load(str(tmp_path), {"HOME": "/"})
        is_told(caught.value)
        assert f"config.toml line 3: {name} = " in caught.value.message, (value, caught.value.message)
        assert caught.value.exit_code == 2
        (tmp_path / "config.toml").unlink()
        if isinstance(value, str):
            with pytest.raises(InvalidSettings, match=f"KVSWAP_{name.upper()} in the environment"):
                Settings.load(str(tmp_path), {"HOME": "/", f"KVSWAP_{name.upper()}": value})
        with pytest.raises(InvalidSettings, match=f"--{name.replace('_', '-')}: "):
            Settings.load(str(tmp_path), {"HOME": "/"}, **{name: value})


@pytest.mark.parametrize("name", NAMES)
def test_every_right_value_and_every_default_is_taken(name: str, tmp_path: Path) -> None:
    default = getattr(Settings.load(str(tmp_path), {"HOME": "/"}), name)
    for value in [*TABLE[name][1], list(default) if isinstance(default, tuple) else default]:
        (tmp_path / "config.toml").write_text(f"{name} = {toml(value)}\n")
        got = getattr(Settings.load(str(tmp_path), {"HOME": "/"}), name)
        assert type(got) is type(default)
        if not isinstance(value, str) and name != "model":
            assert got == (tuple(value) if isinstance(value, list) else value)
        if isinstance(value, str):
            assert type(
                getattr(Settings.load(str(tmp_path), {"HOME": "/", f"KVSWAP_{name.upper()}": value}), name)
            ) is type(got)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('\ufeffdtype = "bf16"\n[table]\nx = 1\n')
    with pytest.raises(InvalidSettings) as caught:
        Settings.load(str(tmp_path), {"HOME": "/", "KVSWAP_API_PORT": "99999"}, threads=-1)
    faults = caught.value.details["faults"]
    assert [f["name"] for f in faults] == ["dtype", "table", "api_port", "threads"]
    assert [f["place"].rpartition("/")[2] for f in faults[:2]] == ["config.toml line 1", "config.toml line 2"]
    assert "4 settings" in caught.value.message
    is_told(caught.value)


@pytest.mark.parametrize("kind", ["mark", "latin-1", "deep", "large", "directory", "pipe", "loop", "nul", "broken"])
def test_a_file_of_any_kind_is_read_or_told(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    content = {
        "mark": b"\xef\xbb\xbfthreads = 3",
        "latin-1": b'model = "\xe9"',
        "deep": b"x = " + b"[" * 5000,
        "large": b"#" * (1 << 21),
        "nul": b"a\0",
        "broken": b"= 1",
    }
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.write_bytes(content[kind])
    if kind == "mark":
        assert Settings.load(str(tmp_path), {"HOME": "/"}).threads == 3
        return
    with pytest.raises(InvalidSettings, match="config.toml") as caught:
        Settings.load(str(tmp_path), {"HOME": "/"})
    is_told(caught.value)


def test_without_home_the_account_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    account = Path(pwd.getpwuid(os.getuid()).pw_dir)
    for env in ({}, {"HOME": ""}, {"HOME": "relative"}):
        assert home_directory(None, env) == account / ".local/share/kvswap"
        assert models_directory(env) == account / ".cache/kvswap/models"
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    with pytest.raises(UsageError) as caught:
        home_directory(None, {})
    is_told(caught.value)
    for bad in ("~nobodyofthisname/x", "a\0b"):
        with pytest.raises(UsageError):
            home_directory(bad, {})


# -- models ------------------------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a model, an empty directory and a file in it; no pulled models."""
    here = tmp_path / "here"
    for directory in (here / "m1", here / "org" / "name", here / "empty"):
        directory.mkdir(parents=True)
    for name in ("m1", "org/name"):
        (here / name / "config.json").write_text("{}")
        (here / name / "x.safetensors").write_text("")
    (here / "file").write_text("x")
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(here))
    return here


@pytest.mark.parametrize(
    "spelling", ["./m1", "m1", "m1/", "./m1/", "../here/m1", "{here}/m1", "{here}/./m1//", "~/m1", "./empty/../m1"]
)
def test_a_model_means_the_same_however_it_was_typed(spelling: str, places: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    name = catalogue.typed(spelling.format(here=places), models)
    assert name == str(places / "m1")
    directory = catalogue.resolve(name, models)
    assert directory == places / "m1" and catalogue.label_of(directory, models) == "m1"
    if spelling not in ("m1", "m1/"):
        assert Settings.load(str(tmp_path), {"HOME": str(places)}, model=spelling.format(here=places)).model == name


def test_a_name_stays_a_name(places: Path, tmp_path: Path) -> None:
    (places / "smollm2-135m").mkdir()
    assert catalogue.typed("smollm2-135m", tmp_path) == "smollm2-135m"  # of the catalogue
    assert catalogue.typed("org/other", tmp_path) == "org/other"  # of the hub
    assert catalogue.typed("org/name", tmp_path) == str(places / "org" / "name")
    pulled = tmp_path / "models" / "org--name"
    pulled.parent.mkdir()
    (places / "m1").rename(pulled)
    assert catalogue.typed("org/name", tmp_path / "models") == "org/name"
    assert catalogue.label_of(pulled, tmp_path / "models") == "org/name"
    assert catalogue.typed("", tmp_path) == ""


@pytest.mark.parametrize("relative", ["./m1", "../m1", "~/m1", ".", ".."])
def test_a_relative_path_is_refused_where_nobody_typed_it(relative: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        catalogue.resolve(relative, tmp_path)
    assert "relative" in caught.value.message
    is_told(caught.value)


@pytest.mark.parametrize("typed", ["/etc", "./empty", "empty", "./file", "./nothing", "/" + "x" * 300, "file/x"])
def test_a_path_without_a_model_is_told_as_a_path(typed: str, places: Path, tmp_path: Path) -> None:
    with pytest.raises(KvswapError) as caught:
        catalogue.resolve(catalogue.typed(typed, tmp_path), tmp_path)
    is_told(caught.value)
    if typed != "file/x":  # that is a name of the hub
        assert "pull" not in caught.value.hint and "nor a directory" not in caught.value.message


def test_a_model_that_was_named_has_to_be_here_and_the_default_need_not(tmp_path: Path) -> None:
    home, none = tmp_path / "home", {"HOME": "/", "KVSWAP_MODELS": str(tmp_path / "none")}
    home.mkdir()
    assert Settings.load(str(home), none, also=catalogue.not_here).model == "smollm2-135m"
    for name in ("smollm2-135m", "no-such-model", "/etc", "org/name"):
        (home / "config.toml").write_text(f'dtype = "bf16"\nmodel = "{name}"\n')
        with pytest.raises(InvalidSettings, match="line 2: model = ") as caught:
            Settings.load(str(home), none, also=catalogue.not_here)
        assert len(caught.value.details["faults"]) == 2


def test_a_daemon_with_wrong_settings_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text('api_port = 99999\nblock_tokens = 0\nlisten = "127.0.0.1:4777"\n')
    done = kvswap(tmp_path, "daemon", "--threads", "-3", "--model", "./nothing")
    assert done.returncode == 2
    for words in ("line 1: api_port", "line 2: block_tokens", "line 3: listen", "--threads", "--model"):
        assert words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "store").exists()


def test_the_document_says_every_range() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    for words in ("0 to 65535", "1 to 366", "1 to 8192", "0 to 1024"):
        assert words in text
