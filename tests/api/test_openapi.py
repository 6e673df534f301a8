"""The description of the local API: as it is kept, of the routes that the daemon has, and of what it takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from kvswap.api import AskRequest, FetchRequest, PrefixRequest, Terms, to_body
from kvswap.api.openapi import ROUTES, description, text
from kvswap.core.errors import UsageError
from kvswap.daemon.app import Api
from kvswap.daemon.page.guard import is_page
from kvswap.daemon.requests import parse


def test_the_description_that_is_kept_is_current() -> None:
    kept = Path(__file__).parents[2] / "docs/openapi.json"
    assert kept.read_text() == text(), "python -m kvswap.api.openapi > docs/openapi.json"


def test_it_has_the_routes_of_the_daemon() -> None:
    api = object.__new__(Api)
    api._node = api._about = None  # routes are bound, and none is called
    routed = {
        (route.method, route.resource.canonical)
        for route in api.application("t").router.routes()
        if route.method not in ("HEAD", "*") and route.resource is not None and not is_page(route.resource.canonical)
    }
    assert routed == {(route.method, route.path) for route in ROUTES}


# body -> whether the daemon takes it
BODIES = [
    (AskRequest, {"ref": "x", "question": "q"}, True),
    (AskRequest, {"ref": "x", "question": "q", "max_tokens": 4096, "objective": "time", "of the future": 1}, True),
    (AskRequest, {"ref": "x"}, False),
    (AskRequest, {"ref": "x", "question": "q", "max_tokens": 4097}, False),
    (AskRequest, {"ref": "x", "question": "q", "objective": "luck"}, False),
    (AskRequest, {"ref": "x", "question": "q", "force": "yes"}, False),
    (FetchRequest, {"ref": "x", "samples": 0}, False),
    (FetchRequest, {"ref": "x", "max_seconds": -1}, False),
    (PrefixRequest, {"model": "", "dtype": "", "block_tokens": 1, "curve": [0, 1.5]}, True),
    (PrefixRequest, {"model": "", "dtype": "", "block_tokens": 1, "curve": [0]}, False),
]


@pytest.fixture(scope="module")
def components() -> dict[str, Any]:
    """The schemas of the description."""
    return description()["components"]


@pytest.mark.parametrize(("kind", "body", "right"), BODIES, ids=str)
def test_description_and_daemon_judge_a_body_alike(
    kind: type, body: dict, right: bool, components: dict[str, Any]
) -> None:
    schema = {"$ref": f"#/components/schemas/{kind.__name__}", "components": components}
    assert jsonschema.Draft202012Validator(schema).is_valid(body) is right
    if right:
        assert isinstance(parse(body, kind), kind)
    else:
        with pytest.raises(UsageError) as caught:
            parse(body, kind)
        assert caught.value.exit_code == 2


def test_null_is_absent_and_one_is_true_as_before() -> None:
    asked = parse({"ref": "x", "text": None, "samples": None, "force": 1, "tofu": 0, "objective": None}, FetchRequest)
    assert asked.force is True and asked.trust_on_first_use is False
    assert asked.terms() == Terms(force=True) and asked.objective.by == "mix"


def test_what_a_client_sends_is_what_the_daemon_reads() -> None:
    asked = AskRequest(ref="x", question="q", trust_on_first_use=True, max_bytes=5, aim="money", group="team")
    body = to_body(asked)
    assert body["tofu"] is True and body["objective"] == "money" and "text" not in body
    assert parse(msgspec.json.decode(msgspec.json.encode(body)), AskRequest) == asked
    assert asked.objective.max_bytes == 5


def test_the_terms_of_a_request_hold_none_of_its_text() -> None:
    asked = AskRequest(ref="x", question="secret question", text="secret text")
    assert "secret" not in repr(asked.terms())


def test_the_contract_is_light() -> None:
    script = (
        "import sys, kvswap.api; "
        "print([m for m in ('torch', 'transformers', 'aiohttp', 'libp2p', 'trio', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
