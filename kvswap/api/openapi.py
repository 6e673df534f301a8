"""The OpenAPI description of the local API, made from the structs of its requests.

python -m kvswap.api.openapi > docs/openapi.json
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from typing import Any

import msgspec

from kvswap.api import requests as bodies
from kvswap.core.version import __version__

TAR = "application/x-tar"
_FREE = frozenset({"/healthz", "/readyz"})  # of the token


@dataclass(frozen=True, slots=True)
class Route:
    """One operation.  `lines`: it answers JSON lines, events and then one result or error.  `body`: what it takes."""

    method: str
    path: str
    summary: str
    body: type[bodies.Request] | None = None
    lines: bool = False
    query: tuple[str, ...] = ()
    answer: str = "application/json"


ROUTES = (
    Route("GET", "/healthz", "Say that the daemon lives."),
    Route("GET", "/readyz", "Say whether it serves, and what does not work."),
    Route("GET", "/metrics", "Counters for Prometheus.", answer="text/plain"),
    Route("GET", "/v1/status", "The node's state: peers, store, model."),
    Route("GET", "/v1/id", "PeerId, publisher and addresses of the node."),
    Route("GET", "/v1/settings", "The settings that the daemon was started with, and where each came from."),
    Route("POST", "/v1/stop", "End the daemon."),
    Route("GET", "/v1/peers", "Peers and what was experienced with them."),
    Route("POST", "/v1/peers/{peer}/block", "Neither serve nor ask a peer."),
    Route("POST", "/v1/peers/{peer}/unblock", "Serve and ask a peer again."),
    Route("GET", "/v1/events", "What happened lately.", lines=True, query=("follow", "heartbeat")),
    Route("GET", "/v1/models", "Models, and which of them are here."),
    Route("GET", "/v1/artifacts", "Artifacts in the store."),
    Route("GET", "/v1/artifacts/{ref}", "One artifact with its manifest and envelope.", query=("key",)),
    Route("DELETE", "/v1/artifacts/{ref}", "Remove an artifact, or all of a document."),
    Route("POST", "/v1/artifacts/{ref}/pin", "Keep an artifact whatever space is needed."),
    Route("POST", "/v1/artifacts/{ref}/unpin", "Keep it no longer."),
    Route("POST", "/v1/artifacts/{ref}/withdraw", "Take back what this node published.", bodies.WithdrawRequest),
    Route("GET", "/v1/artifacts/{ref}/archive", "An artifact as one file.", query=("group",), answer=TAR),
    Route("POST", "/v1/archives", "Take in an artifact as one file, which is the body.", lines=True),
    Route("GET", "/v1/chunks/{cid}", "The bytes of a chunk in the store.", answer="application/octet-stream"),
    Route("POST", "/v1/publish", "Prefill, sign and announce a document.", bodies.PublishRequest, lines=True),
    Route("POST", "/v1/codec/train", "Train the predictive codec.", bodies.TrainRequest, lines=True),
    Route("POST", "/v1/fetch", "Make an artifact local and verified.", bodies.FetchRequest, lines=True),
    Route("POST", "/v1/find", "Who has an artifact or a document? Fetches nothing.", bodies.FindRequest, lines=True),
    Route("POST", "/v1/plan", "Fetch, prefill, both at once, or a host?", bodies.PlanRequest, lines=True),
    Route("POST", "/v1/ask", "Answer a question from a document's cache.", bodies.AskRequest, lines=True),
    Route("POST", "/v1/verify", "Check an artifact, or the store.", bodies.VerifyRequest, lines=True),
    Route("POST", "/v1/gc", "Free space in the store.", bodies.CollectRequest),
    Route("POST", "/v1/beginning", "Fetch the longest published prefix.", bodies.PrefixRequest, lines=True),
    Route("GET", "/v1/beginnings", "Keys of all prefixes that can be found.", query=("version", "wait")),
    Route("POST", "/v1/computed", "Publish what an engine computed; the body is frames.", lines=True),
    Route("GET", "/v1/hosts", "Hosts that invited this node, with their offers."),
    Route("POST", "/v1/hosts", "Accept a host's invitation.", bodies.JoinRequest),
    Route("DELETE", "/v1/hosts/{peer}", "Forget a host."),
    Route("GET", "/v1/audits", "What was found by verifying.", query=("publisher",)),
    Route("GET", "/v1/trust", "Publishers on the allow-list, and those found to be wrong."),
    Route("POST", "/v1/trust", "Put a publisher on the allow-list.", bodies.TrustRequest),
    Route("DELETE", "/v1/trust/{peer}", "Take a publisher off the allow-list."),
    Route("POST", "/v1/rotate", "Make a new publisher key, which the old one names."),
    Route("GET", "/v1/groups", "Groups whose key this node has."),
    Route("POST", "/v1/groups", "Make a group, or join one by its key.", bodies.GroupRequest),
    Route("POST", "/v1/groups/{name}/export", "A group's key, which is a secret."),
    Route("DELETE", "/v1/groups/{name}", "Forget a group's key."),
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


def _operation(route: Route) -> dict[str, Any]:
    kind = "application/x-ndjson" if route.lines else route.answer
    schema = {"type": "object"} if kind.endswith("json") else {"type": "string"}
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
        schema = {"$ref": f"#/components/schemas/{route.body.__name__}"}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if route.path in _FREE:
        operation["security"] = []
    return operation


def description() -> dict[str, Any]:
    """Make the OpenAPI 3.1 document."""
    kinds = [route.body for route in ROUTES if route.body is not None]
    _, schemas = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
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
