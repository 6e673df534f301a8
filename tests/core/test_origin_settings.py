"""The settings of origins: judged value by value, and one form for each URL."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvswap.core.errors import InvalidSettings
from kvswap.core.limits import LIMITS
from kvswap.core.origin_settings import OriginSettings, directory_of, endpoint, origin, origins, url
from kvswap.core.settings import Settings


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("file:///mnt/share/", "file:///mnt/share"),
        ("file://localhost/mnt/a b", "file:///mnt/a%20b"),
        ("https://Example.org/kv/", "https://example.org/kv"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("https://[::1]:8443/x", "https://[::1]:8443/x"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
    ],
)
def test_a_url_has_one_form(typed: str, named: str) -> None:
    assert url(typed) == named == url(named)


@pytest.mark.parametrize(
    "typed",
    [
        "", "share", "/mnt/share", "file://share", "file:///", "file:///a/../b", "file:///a//b", "ftp://x/y", "s3://B/x",
        "s3://ab..cd/x", "https://user:word@x/y", "https://x/y?z", "https://x/y#z", "https://x/../y", "https://x:99999/",
        "https:///y", "s3://bucket/../x", 7, None, "https://x/" + "y" * 2000,
    ],
)  # fmt: skip
def test_what_is_no_origin_is_refused(typed: object) -> None:
    with pytest.raises(ValueError):
        url(typed)


@given(st.text(max_size=60))
def test_a_name_leads_nowhere_else(text: str) -> None:
    for typed in (text, f"file:///{text}", f"https://host/{text}", f"s3://bucket/{text}"):
        try:
            named = url(typed)
        except ValueError:
            continue
        assert named.isprintable() and ".." not in named.split("/") and url(named) == named
        if named.startswith("file:"):
            directory = directory_of(named)
            assert directory.startswith("/") and not {"..", ".", ""} & set(directory.split("/")[1:])


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({}, "no url"),
        ({"url": "https://x", "color": 1}, "color"),
        ({"url": "https://x", "write": True}, "web server"),
        ({"url": "https://x", "endpoint": "https://y"}, "only for s3"),
        ({"url": "s3://bucket", "endpoint": "https://y/path"}, "endpoint"),
        ({"url": "s3://bucket", "price_per_gb": -1}, "price_per_gb"),
        ({"url": "s3://bucket", "region": "a b"}, "region"),
    ],
)
def test_each_value_is_judged(row: dict[str, object], what: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=what):
        origin(row)
    table = "\n".join(f"{name} = {value!r}".replace("True", "true") for name, value in row.items())
    (tmp_path / "config.toml").write_text(f"[[origins]]\n{table}\n")
    with pytest.raises(InvalidSettings, match=what):
        Settings.load(str(tmp_path), {})


def test_several_are_read_from_each_layer(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(
        '[[origins]]\nurl = "s3://bucket/kv/"\nendpoint = "http://127.0.0.1:9000/"\nprice_per_request = 0.0000004\n'
        '[[origins]]\nurl = "file:///mnt/share"\nwrite = true\n'
    )
    bucket, share = Settings.load(str(tmp_path), {}).origins
    assert bucket == OriginSettings("s3://bucket/kv", endpoint="http://127.0.0.1:9000", price_per_request=4e-7)
    assert bucket.plain and not share.plain and share.write
    assert bucket.read_price_per_gb == pytest.approx(4e-7 * 1e9 / LIMITS.chunk_target_bytes)
    assert share.to_json() == {"url": "file:///mnt/share", "write": True}
    env = {"KVSWAP_ORIGINS": "https://a.example/x, file:///b"}
    assert [o.url for o in Settings.load(str(tmp_path), env).origins] == ["https://a.example/x", "file:///b"]
    with pytest.raises(ValueError, match="once"):
        origins("file:///a,file:///a/")
    with pytest.raises(ValueError, match="at most"):
        origins(",".join(f"file:///{n}" for n in range(LIMITS.origins + 1)))
    assert endpoint("") == ""
