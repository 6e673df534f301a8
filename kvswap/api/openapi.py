"""The OpenAPI description of the local API, made from the structs of its requests, results and events.

python -m kvswap.api.openapi > docs/openapi.json
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
import sys
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from kvswap.api import (
    archives,
    caches,
    chat,
    events,
    find,
    hosts,
    node,
    origins,
    peers,
    plans,
    status,
    store,
    trust,
    verification,
)
from kvswap.api import requests as bodies
from kvswap.api.result import OpenResult, Result
from kvswap.core.version import __version__

TAR = "application/x-tar"
_FREE = frozenset({"/healthz", "/readyz"})  # of the token


@dataclass(frozen=True, slots=True)
class Route:
    """One operation.  `body`: what it takes; `results`: what it answers, one of these.

    `lines`: it answers JSON lines, each an event, and at last one with the result or an error.
    """

    method: str
    path: str
    summary: str
    results: tuple[type[Result], ...] = ()
    body: type[bodies.Request] | None = None
    lines: bool = False
    query: tuple[str, ...] = ()
    answer: str = "application/json"


ROUTES = (
    Route("GET", "/healthz", "Say that the daemon lives.", (node.AliveResult,)),
    Route("GET", "/readyz", "Say whether it serves, and what does not work.", (node.ReadyResult,)),
    Route("GET", "/metrics", "Counters for Prometheus.", answer="text/plain"),
    Route("GET", "/v1/status", "The node's state: peers, store, model.", (status.StatusResult,)),
    Route("GET", "/v1/id", "PeerId, publisher and addresses of the node.", (node.IdentityResult,)),
    Route(
        "GET",
        "/v1/settings",
        "The settings that the daemon was started with, and where each came from.",
        (node.SettingsResult,),
    ),
    Route("POST", "/v1/ui", "Make a link that opens the local page once.", (node.UiResult,), query=("plain",)),
    Route("POST", "/v1/stop", "End the daemon.", (node.StopResult,)),
    Route("GET", "/v1/peers", "Peers and what was experienced with them.", (peers.PeersResult,)),
    Route("POST", "/v1/peers/{peer}/block", "Neither serve nor ask a peer.", (peers.BlockResult,)),
    Route("POST", "/v1/peers/{peer}/unblock", "Serve and ask a peer again.", (peers.BlockResult,)),
    Route("GET", "/v1/events", "What happened lately.", (events.NodeEvent,), lines=True, query=("follow", "heartbeat")),
    Route("GET", "/v1/models", "Models, and which of them are here.", (node.ModelsResult,)),
    Route("GET", "/v1/artifacts", "Artifacts in the store.", (store.ArtifactsResult,)),
    Route(
        "GET",
        "/v1/artifacts/{ref}",
        "One artifact with its manifest and envelope.",
        (store.ArtifactDetails,),
        query=("key",),
    ),
    Route(
        "DELETE",
        "/v1/artifacts/{ref}",
        "Remove an artifact, or all of a document.",
        (store.RemoveResult,),
        query=("origins",),
    ),
    Route("POST", "/v1/artifacts/{ref}/pin", "Keep an artifact whatever space is needed.", (store.PinResult,)),
    Route("POST", "/v1/artifacts/{ref}/unpin", "Keep it no longer.", (store.PinResult,)),
    Route(
        "POST",
        "/v1/artifacts/{ref}/withdraw",
        "Take back what this node published.",
        (store.WithdrawResult,),
        body=bodies.WithdrawRequest,
    ),
    Route("GET", "/v1/artifacts/{ref}/archive", "An artifact as one file.", query=("group",), answer=TAR),
    Route(
        "POST", "/v1/archives", "Take in an artifact as one file, which is the body.", (archives.Imported,), lines=True
    ),
    Route("GET", "/v1/chunks/{cid}", "The bytes of a chunk in the store.", answer="application/octet-stream"),
    Route(
        "POST",
        "/v1/publish",
        "Prefill, sign and announce a document.",
        (caches.PublishResult,),
        body=bodies.PublishRequest,
        lines=True,
    ),
    Route(
        "POST",
        "/v1/codec/train",
        "Train the predictive codec.",
        (caches.TrainResult,),
        body=bodies.TrainRequest,
        lines=True,
    ),
    Route(
        "POST",
        "/v1/fetch",
        "Make an artifact local and verified.",
        (caches.FetchResult,),
        body=bodies.FetchRequest,
        lines=True,
    ),
    Route(
        "POST",
        "/v1/find",
        "Who has an artifact or a document? Fetches nothing.",
        (find.FindResult,),
        body=bodies.FindRequest,
        lines=True,
    ),
    Route(
        "POST",
        "/v1/plan",
        "Fetch, prefill, both at once, or a host?",
        (plans.PlanResult,),
        body=bodies.PlanRequest,
        lines=True,
    ),
    Route(
        "POST",
        "/v1/ask",
        "Answer a question from a document's cache.",
        (caches.AskResult,),
        body=bodies.AskRequest,
        lines=True,
    ),
    Route(
        "POST",
        "/v1/render",
        "Write a conversation by a model's chat template.",
        (chat.RenderResult,),
        body=bodies.RenderRequest,
        lines=True,
    ),
    Route(
        "POST",
        "/v1/verify",
        "Check an artifact, or the store.",
        (
            verification.VerifyResult,
            verification.StoreCheck,
        ),
        body=bodies.VerifyRequest,
        lines=True,
    ),
    Route("POST", "/v1/gc", "Free space in the store.", (store.CollectResult,), body=bodies.CollectRequest),
    Route(
        "POST",
        "/v1/beginning",
        "Fetch the longest published prefix.",
        (caches.PrefixResult,),
        body=bodies.PrefixRequest,
        lines=True,
    ),
    Route(
        "GET",
        "/v1/beginnings",
        "Keys of all prefixes that can be found.",
        (caches.PrefixIndex,),
        query=("version", "wait"),
    ),
    Route(
        "POST",
        "/v1/computed",
        "Publish what an engine computed; the body is frames.",
        (caches.ComputedResult,),
        lines=True,
    ),
    Route("GET", "/v1/hosts", "Hosts that invited this node, with their offers.", (hosts.HostsResult,)),
    Route("POST", "/v1/hosts", "Accept a host's invitation.", (hosts.JoinResult,), body=bodies.JoinRequest),
    Route("DELETE", "/v1/hosts/{peer}", "Forget a host.", (peers.LeaveResult,)),
    Route("GET", "/v1/origins", "Origins, and what was experienced with each.", (origins.OriginsResult,)),
    Route("POST", "/v1/origins", "Add an origin.", (origins.OriginRow,), body=bodies.OriginRequest),
    Route("DELETE", "/v1/origins", "Forget an origin.", (origins.OriginRemoved,), query=("url",)),
    Route(
        "POST", "/v1/origins/test", "Read and write one file there.", (origins.OriginTest,), body=bodies.OriginRequest
    ),
    Route(
        "POST",
        "/v1/push",
        "Put an artifact in the store at an origin.",
        (origins.PushResult,),
        body=bodies.PushRequest,
        lines=True,
    ),
    Route("GET", "/v1/audits", "What was found by verifying.", (trust.AuditsResult,), query=("publisher",)),
    Route("GET", "/v1/trust", "Publishers on the allow-list, and those found to be wrong.", (trust.TrustResult,)),
    Route(
        "POST", "/v1/trust", "Put a publisher on the allow-list.", (trust.TrustedPublisher,), body=bodies.TrustRequest
    ),
    Route("DELETE", "/v1/trust/{peer}", "Take a publisher off the allow-list.", (peers.LeaveResult,)),
    Route("POST", "/v1/rotate", "Make a new publisher key, which the old one names.", (trust.RotateResult,)),
    Route("GET", "/v1/groups", "Groups whose key this node has.", (trust.GroupsResult,)),
    Route(
        "POST", "/v1/groups", "Make a group, or join one by its key.", (trust.GroupResult,), body=bodies.GroupRequest
    ),
    Route("POST", "/v1/groups/{name}/export", "A group's key, which is a secret.", (trust.GroupKey,)),
    Route("DELETE", "/v1/groups/{name}", "Forget a group's key.", (trust.GroupLeaveResult,)),
)

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "cause", "hint"],
            "properties": {
                **{name: {"type": "string"} for name in ("code", "message", "cause", "hint")},
                "details": {"type": "object"},
            },
        }
    },
}


def _reference(kind: type[msgspec.Struct]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _answer(route: Route) -> dict[str, Any]:
    """Describe what an operation answers; of an answer of lines, one line."""
    found = [_reference(result) for result in route.results]
    if not route.lines or route.results == (events.NodeEvent,):
        return found[0] if len(found) == 1 else {"anyOf": found}
    last = {"type": "object", "required": ["result"], "properties": {"result": {"anyOf": found}}}
    return {"anyOf": [{"$ref": "#/components/schemas/ProgressEvent"}, last, {"$ref": "#/components/schemas/Error"}]}


def _operation(route: Route) -> dict[str, Any]:
    kind = "application/x-ndjson" if route.lines else route.answer
    schema = _answer(route) if kind.endswith("json") else {"type": "string"}
    places = [("path", name, True) for name in re.findall(r"{(\w+)}", route.path)]
    places += [("query", name, False) for name in route.query]
    operation: dict[str, Any] = {
        "summary": route.summary,
        "responses": {
            "200": {"description": "done", "content": {kind: {"schema": schema}}},
            "default": {
                "description": "an error",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
            },
        },
    }
    if places:
        operation["parameters"] = [
            {"in": where, "name": name, "required": required, "schema": {"type": "string"}}
            for where, name, required in places
        ]
    if route.body is not None:
        content = {"application/json": {"schema": _reference(route.body)}}
        operation["requestBody"] = {"required": True, "content": content}
    if route.path in _FREE:
        operation["security"] = []
    return operation


def _parts(kinds: Iterable[type[msgspec.Struct]]) -> set[type[msgspec.Struct]]:
    """Return all structs that these have in their fields."""
    found: set[type[msgspec.Struct]] = set()
    todo: list[Any] = list(msgspec.inspect.multi_type_info(list(kinds)))
    while todo:
        info = todo.pop()
        if isinstance(info, msgspec.inspect.StructType):
            if info.cls in found:
                continue
            found.add(info.cls)
        todo += [getattr(info, name) for name in ("item_type", "key_type", "value_type", "type") if hasattr(info, name)]
        todo += [*getattr(info, "types", ()), *getattr(info, "fields", ())]
    return found


def _descriptions(kind: type[msgspec.Struct]) -> dict[str, str]:
    """Return what the text below each field of a struct says of it, by the field's name in JSON."""
    names = {field.name: field.encode_name for field in msgspec.structs.fields(kind)}
    words: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not base.__module__.startswith("kvswap."):
            continue
        (parsed,) = ast.parse(inspect.getsource(base)).body
        for line, below in itertools.pairwise(getattr(parsed, "body", ())):
            said = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and below.value.value
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and isinstance(said, str):
                words[names.get(line.target.id, line.target.id)] = inspect.cleandoc(said)
    return words


def description() -> dict[str, Any]:
    """Make the OpenAPI 3.1 document."""
    kinds: list[type[msgspec.Struct]] = [route.body for route in ROUTES if route.body is not None]
    kinds += [result for route in ROUTES for result in route.results]
    kinds += [*typing.get_args(events.KnownEvent), events.OtherEvent]
    _, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    for kind in (events.NodeEvent, events.OtherEvent, verification.Check):  # `more` stands beside the named fields
        assert issubclass(kind, OpenResult)  # noqa: S101 - of what is written here
        del schemas[kind.__name__]["properties"]["more"]
    for each in {*kinds, *_parts(kinds)}:
        properties = schemas[each.__name__]["properties"]
        for name, words in _descriptions(each).items():
            if name in properties:
                properties[name]["description"] = words
    schemas["ProgressEvent"] = {"anyOf": [_reference(kind) for kind in typing.get_args(events.ProgressEvent)]}
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kvswap's local API",
            "version": __version__,
            "description": "On loopback with the bearer token of daemon.json, or on daemon.sock without one.",
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": {**schemas, "Error": _ERROR},
        },
    }


def text() -> str:
    """Write the document as it is kept in docs/openapi.json."""
    return json.dumps(description(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
