"""A host answers guests in JSON whatever they send and whatever fails here; of its own trouble they get no details."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from kvswap.core.errors import KvswapError
from kvswap.host.admission import Admission
from kvswap.host.app import HostApi, Served
from kvswap.host.usage_log import UsageLog
from tests.core.test_failures import REAL, is_told
from tests.support import run
from tests.trust.test_hosting import HOST, TARIFF


class Failing:
    """Prompts and engine of which every use raises."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self._make()


async def ask(
    root: Path, make: Any, method: str, path: str, token: str | None = None, **options: Any
) -> tuple[int, Any]:
    usage_log = UsageLog(root / "host.sqlite3")
    right = usage_log.invite("alice")
    failing = Failing(make)
    served = Served("m", bytes(32), "float32", TARIFF)
    api = HostApi(served, HOST, usage_log, Admission(usage_log, bytes(32), 4), failing, failing)  # type: ignore[arg-type]
    async with TestClient(TestServer(api.application())) as client:
        headers = {"Authorization": f"Bearer {right if token is None else token}"}
        async with client.request(method, path, headers=headers, **options) as response:
            text = await response.text()
    usage_log.close()
    return response.status, json.loads(text)


@pytest.mark.parametrize("name", [n for n in REAL if n != "broken pipe"])
def test_own_trouble_is_told_without_details(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make, codes = REAL[name]
    status, answer = run(ask(tmp_path, make, "POST", "/v1/completions", json={"prompt": "x"}))
    error = KvswapError.from_dict(answer["error"])
    is_told(error)
    assert status >= 500 or error.exit_code == 2
    assert "/" not in error.message or error.exit_code == 2
    assert any(record.exc_info for record in caplog.records)  # the traceback is in the log


@pytest.mark.parametrize("body", [b"[" * 100_000, b"{", b"[]", b'"x"', b"\xff", b'{"a": ' + b"9" * 5000 + b"}"])
def test_a_body_that_is_no_object_is_refused(body: bytes, tmp_path: Path) -> None:
    status, answer = run(ask(tmp_path, lambda: None, "POST", "/v1/completions", data=body))
    assert status == 400
    is_told(KvswapError.from_dict(answer["error"]))


@pytest.mark.parametrize("after", ["1" + "0" * 30, "-1", "x", "1" * 5000, "nan", "1.5", ""])
def test_the_number_of_a_read_is_bounded(after: str, tmp_path: Path) -> None:
    status, answer = run(ask(tmp_path, lambda: None, "GET", f"/v1/usage?after={after}"))
    assert status == 400
    is_told(KvswapError.from_dict(answer["error"]))


@pytest.mark.parametrize("token", ["\udcff", "é", "x", "", "x" * 300, "\ud83d"])
def test_a_token_of_any_form_is_refused(token: str, tmp_path: Path) -> None:
    usage_log = UsageLog(tmp_path / "host.sqlite3")
    admission = Admission(usage_log, bytes(32), 4)
    with pytest.raises(KvswapError) as caught:
        admission.client(f"Bearer {token}")
    assert caught.value.http_status == 401
    is_told(caught.value)
    usage_log.close()


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("PUT", "/v1/usage", 405)])
def test_what_the_http_library_refuses_is_json(method: str, path: str, status: int, tmp_path: Path) -> None:
    got, answer = run(ask(tmp_path, lambda: None, method, path))
    assert got == status
    is_told(KvswapError.from_dict(answer["error"]))
