"""Results and events: structs with the names of the JSON contract, and the keys that they had as dicts."""

from __future__ import annotations

import inspect
import json
import typing
import warnings

import msgspec
import pytest

from kvswap import api
from kvswap.api import (
    AskResult,
    Check,
    HostRow,
    OtherEvent,
    PlanSummary,
    StoreCheck,
    TokenEvent,
    event_of,
    events,
    plain,
)
from kvswap.api.result import OldKeys, OpenResult, Result
from kvswap.client import calls

ANSWER = AskResult(
    text="It is.",
    token_ids=[1, 2],
    plan=PlanSummary(action="fetch", seconds=0.5, dollars=0.0, reason="it is quick"),
    ttft_seconds=0.25,
    logits_digest=None,
    claim="bitwise",
    tokens=5,
    artifact="bafk",
    unchecked={},
    fetched_tokens=5,
    computed_tokens=0,
    wire_bytes=7,
    peers=["12D3"],
    ready_seconds=None,
    load_seconds=0.0,
    prefill_seconds=0.0,
    seconds=1.0,
)
CHECK = Check(level="V5", name="samples", verdict="passed", seconds=0.1, why="", more={"positions": 3, "worst": 0.5})


def test_json_has_the_names_of_the_contract_and_leaves_out_what_is_not_there() -> None:
    body = ANSWER.to_json()
    assert body["from"] == ["12D3"] and body["plan"]["reason"] == "it is quick" and body["logits_digest"] is None
    assert "peers" not in body and "host" not in body
    assert AskResult.from_json(json.loads(json.dumps(body))) == ANSWER
    assert plain({"answers": [ANSWER], "n": 1}) == {"answers": [body], "n": 1}


def test_what_a_newer_daemon_adds_is_ignored_and_what_is_wrong_refused() -> None:
    assert AskResult.from_json(ANSWER.to_json() | {"of the future": 1}) == ANSWER
    for wrong in ({}, [], None, ANSWER.to_json() | {"tokens": "5"}):
        with pytest.raises(msgspec.ValidationError):
            AskResult.from_json(wrong)
    for wrong in (None, 5, {"step": 1}):
        with pytest.raises(msgspec.ValidationError):
            Check.from_json(wrong)


def test_they_are_frozen() -> None:
    with pytest.raises(AttributeError):
        ANSWER.tokens = 6  # type: ignore[misc]


def test_an_open_result_has_more_beside_its_fields() -> None:
    body = CHECK.to_json()
    assert body["step"] == "V5" and body["positions"] == 3 and "more" not in body and "proven" not in body
    assert Check.from_json(body) == CHECK and CHECK.more["worst"] == 0.5
    with pytest.warns(DeprecationWarning):
        assert CHECK["worst"] == 0.5


@pytest.mark.parametrize(
    ("old", "same"),
    [
        (lambda a: a["from"], ["12D3"]),
        (lambda a: a["plan"]["reason"], "it is quick"),
        (lambda a: a.get("host"), None),
        (lambda a: a.get("host", 5), 5),
        (lambda a: "host" in a, False),
        (lambda a: dict(a)["text"], "It is."),
        (lambda a: {**a}["text"], "It is."),
        (lambda a: (a | {"text": "x"})["text"], "x"),
        (lambda a: set(a) == set(a.keys()) == set(a.to_json()), True),
        (lambda a: len(a) == len(a.values()) == len(a.items()), True),
    ],
)
def test_it_answers_as_the_dict_it_was(old: typing.Any, same: object) -> None:
    with pytest.warns(DeprecationWarning, match="AskResult is no dict any more") as told:
        assert old(ANSWER) == same
    assert all(warning.filename == __file__ for warning in told)  # it names who has to change
    with pytest.warns(DeprecationWarning), pytest.raises(KeyError):
        ANSWER["nothing"]  # type: ignore[index]


def test_new_access_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ANSWER and ANSWER.plan.action == "fetch" and ANSWER.host is None and ANSWER.to_json()


def test_events_are_told_apart_by_kind() -> None:
    for kind in typing.get_args(events.KnownEvent):
        assert kind.__name__.endswith("Event") and kind.__struct_config__.tag_field == "event"
    said = event_of({"event": "token", "text": "a"})
    assert said == TokenEvent(text="a") and said.kind == "token" and said.to_json() == {"event": "token", "text": "a"}
    with pytest.warns(DeprecationWarning):
        assert said["event"] == "token"  # type: ignore[index]


@pytest.mark.parametrize("message", [{"event": "of the future", "x": [1]}, {"event": "token", "id": 1}], ids=str)
def test_an_event_of_another_version_is_passed_on(message: dict[str, object]) -> None:
    other = event_of(message)
    assert isinstance(other, OtherEvent) and other.kind == message["event"] and other.to_json() == message


def test_every_call_names_the_kind_of_its_result() -> None:
    for name, call in inspect.getmembers(calls, inspect.isfunction):
        said = str(inspect.signature(call).return_annotation)
        if said.startswith("Call[api."):
            kind = getattr(api, said.removeprefix("Call[api.").rstrip("]"))
            assert issubclass(kind, Result) and f'"{kind.__name__}"' in inspect.getsource(call), name


def test_every_name_of_the_contract_is_found() -> None:
    assert sorted(api._MODULES) == sorted(api.__all__)
    for name in api.__all__:
        value = getattr(api, name)
        if inspect.isclass(value) and issubclass(value, Result):
            assert value.__doc__ and value.__struct_config__.frozen, name
    with pytest.raises(AttributeError):
        _ = api.Nothing


def test_the_one_with_a_problem_has_no_offer() -> None:
    assert HostRow(peer="p", url=None, seconds=None, problem="away").to_json() == {
        "peer": "p",
        "url": None,
        "seconds": None,
        "problem": "away",
    }
    assert issubclass(StoreCheck, OldKeys) and not issubclass(StoreCheck, OpenResult)
