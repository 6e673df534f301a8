"""The JSON contract: what every verb answers has the keys and kinds of values that are recorded, as OpenAPI describes.

A key that is added is recorded by `python -m tests.api.scenario tests/api/contract.json`; none goes, and none changes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

from kvswap import api
from kvswap.api import OtherEvent, event_of
from kvswap.api.openapi import description
from tests.api.scenario import nodes, shapes, walk
from tests.api.shapes import differences, either, shape_of

SCHEMAS = {  # of verbs that print what the API answers
    "ask": "AskResult",
    "block": "BlockResult",
    "codec train": "TrainResult",
    "fetch": "FetchResult",
    "find": "FindResult",
    "gc": "CollectResult",
    "group export": "GroupKey",
    "group new": "GroupResult",
    "group rm": "GroupLeaveResult",
    "host join": "JoinResult",
    "host known": "HostsResult",
    "host leave": "LeaveResult",
    "id": "IdentityResult",
    "import": "Imported",
    "ls": "ArtifactsResult",
    "peers": "PeersResult",
    "pin": "PinResult",
    "plan": "PlanResult",
    "publish": "PublishResult",
    "rm": "RemoveResult",
    "status": "StatusResult",
    "trust add": "TrustedPublisher",
    "trust audits": "AuditsResult",
    "trust ls": "TrustResult",
    "trust rm": "LeaveResult",
    "trust rotate": "RotateResult",
    "verify": "VerifyResult",
    "verify --store": "StoreCheck",
    "withdraw": "WithdrawResult",
    "GET /healthz": "AliveResult",
    "GET /readyz": "ReadyResult",
    "GET /v1/artifacts/{ref}": "ArtifactDetails",
    "GET /v1/audits": "AuditsResult",
    "GET /v1/beginnings": "PrefixIndex",
    "GET /v1/groups": "GroupsResult",
    "GET /v1/models": "ModelsResult",
}
LOCAL = {  # of verbs that need no daemon
    "completion": "CompletionScript",
    "config": "ConfigResult",
    "daemon": "DaemonReady",
    "doctor": "DoctorResult",
    "group ls": "GroupRows",
    "host add": "HostingResult",
    "host clients": "ClientsResult",
    "host invite": "InvitationResult",
    "host log": "ReceiptsResult",
    "host ls": "HostedResult",
    "host revoke": "RevokeResult",
    "host rm": "UnhostingResult",
    "logs": "LogRow",
    "manifest check": "SignedFile",
    "model check": "ModelCheck",
    "model ls": "ModelRows",
    "model pull": "PullResult",
    "model rm": "ModelRemoval",
    "rm --dry-run": "RemovalPreview",
    "show": "ShownArtifact",
    "stop": "EndResult",
}
RECORDED = json.loads(Path(__file__).with_name("contract.json").read_text())


def test_every_verb_answers_as_recorded(tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    with nodes(tmp_path, tiny_models["llama"]) as given:
        answered = walk(tmp_path, *given)
    found = shapes(answered)
    answers = {name for name in found if ": " not in name}
    assert answers == {name for name in RECORDED if ": " not in name}
    unknown = {name for name in found.keys() - RECORDED.keys() if not name.startswith("events: ")}
    assert unknown == set()
    both = sorted(found.keys() & RECORDED.keys())
    assert [one for name in both for one in differences(found[name], RECORDED[name], name)] == []
    fits_description(answered)


def fits_description(answered: dict[str, list[dict[str, Any]]]) -> None:
    """Hold what was answered against the schemas of the OpenAPI description, and read it with their structs."""
    components = description()["components"]
    checked = {
        name: jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": components})
        for name in {*SCHEMAS.values(), "ProgressEvent", "NodeEvent"}
    }
    for verb, lines in answered.items():
        for line in lines:
            if verb == "events":
                checked["NodeEvent"].validate(line)
            elif "event" in line:
                checked["ProgressEvent"].validate(line)
                assert not isinstance(event_of(line), OtherEvent), line
            elif name := SCHEMAS.get(verb) or LOCAL.get(verb):
                if verb in SCHEMAS:
                    checked[name].validate(line)
                again = getattr(api, name).from_json(line).to_json()
                assert json.dumps(again) == json.dumps(line), verb  # the order too


def test_differences_are_seen() -> None:
    recorded = either(shape_of({"a": 1, "b": {"12D3KooWx": 1.5}}), shape_of({"a": None, "b": {}, "c": [1]}))
    for same in ({"a": 1, "b": {}}, {"a": None, "b": {"12D3KooWy": 0.5}, "c": []}):
        assert differences(shape_of(same), recorded) == []
    for other, why in (
        ({"b": {}}, ".a: is missing"),
        ({"a": "1", "b": {}}, ".a: str"),
        ({"a": 1, "b": {}, "d": 0}, ".d: is new"),
        ({"a": 1, "b": {"12D3KooWx": 1}}, ".b.*: int"),
        ({"a": 1, "b": {}, "c": [""]}, ".c[]: str"),
    ):
        (said,) = differences(shape_of(other), recorded)
        assert why in said
