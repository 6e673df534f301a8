"""The tools: what each is called, takes, answers and may do.

No argument of a tool widens what this node trusts, pays or shows: there is no trust on first use, no untrusted
publisher, no host, and no file but those that `AllowedFolders` has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from kvswap import api
from kvswap.client import AsyncClient
from kvswap.core.documents import check_text
from kvswap.core.errors import NotFound, UsageError
from kvswap.core.ids import document_digest, parse_reference
from kvswap.core.limits import LIMITS
from kvswap.mcp.folders import AllowedFolders
from kvswap.mcp.schemas import arguments_schema, result_schema

OnEvent = Callable[[api.ProgressEvent], None]
Call = Callable[["ToolContext", Any, OnEvent], Awaitable[api.Result]]

_STANDINGS = 4  # artifacts of one document whose standing is looked up
_LISTED = 20
_REFERENCE = "Artifact id, or sha256:<hex> of the document."
_TEXT = "The document itself, instead of ref."

Limit = Annotated[int, Meta(ge=1, le=1_000)]
AnswerTokens = Annotated[int, Meta(ge=1, le=LIMITS.host_tokens)]


@dataclass(frozen=True, slots=True)
class ToolContext:
    """The things that tools work with: the node, and the folders whose files may be published."""

    client: AsyncClient
    folders: AllowedFolders


class Arguments(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The arguments of a tool; others than these are refused."""


class OfDocument(Arguments, frozen=True, kw_only=True):
    """The arguments that name a document, one of them."""

    ref: Annotated[str, Meta(description=_REFERENCE)] | None = None
    text: Annotated[str, Meta(description=_TEXT)] | None = None

    def named(self) -> tuple[str, str | None]:
        """Return the reference, and the text where it was given.  Raises `UsageError`, `InvalidDocument`."""
        if self.text is not None:
            digest = document_digest(check_text(self.text))
            if self.ref not in (None, digest):
                raise UsageError("ref and text name two documents", cause="both were given", hint="give one of them")
            return digest, self.text
        if self.ref is None:
            raise UsageError("neither ref nor text was given", hint="ref: an artifact id or sha256:<hex>")
        return str(parse_reference(self.ref)), None


class AskArguments(OfDocument, frozen=True, kw_only=True):
    """The arguments of `ask`."""

    question: str
    max_tokens: AnswerTokens = 128


class FetchArguments(Arguments, frozen=True, kw_only=True):
    """The arguments of `fetch`."""

    ref: Annotated[str, Meta(description=_REFERENCE)]


class ListArguments(Arguments, frozen=True, kw_only=True):
    """The arguments of `list`."""

    limit: Limit = _LISTED


class PublishArguments(Arguments, frozen=True, kw_only=True):
    """The arguments of `publish`."""

    path: Annotated[str, Meta(description="A text file below an allowed folder.")]


async def _find(tools: ToolContext, given: OfDocument, on_event: OnEvent) -> api.FindResult:
    ref, text = given.named()
    return await tools.client.find(ref, text=text)


async def _plan(tools: ToolContext, given: OfDocument, on_event: OnEvent) -> api.PlanResult:
    ref, text = given.named()
    return await tools.client.plan(ref, text=text, on_event=on_event)


async def _ask(tools: ToolContext, given: AskArguments, on_event: OnEvent) -> api.AskResult:
    ref, text = given.named()
    return await tools.client.ask(ref, given.question, text=text, max_tokens=given.max_tokens, on_event=on_event)


async def _why(tools: ToolContext, given: OfDocument, on_event: OnEvent) -> api.WhyResult:
    ref, text = given.named()
    plan = await tools.client.plan(ref, text=text, on_event=on_event)
    try:
        found = (await tools.client.find(ref, text=text)).artifacts
    except NotFound:
        found = []
    artifacts = []
    for place, one in enumerate(found):
        here = one.here is not None and place < _STANDINGS
        stored = await tools.client.show(one.artifact) if here else None
        artifacts.append(
            api.WhyArtifact(
                artifact=one.artifact,
                publisher=one.publisher,
                trusted=one.trusted,
                problem=one.problem,
                standing=stored.standing if stored is not None else None,
                why=stored.why if stored is not None else None,
            )
        )
    summary = api.PlanSummary(action=plan.action, seconds=plan.seconds, dollars=plan.dollars, reason=plan.reason)
    return api.WhyResult(plan=summary, basis=plan.basis, artifacts=artifacts)


async def _list(tools: ToolContext, given: ListArguments, on_event: OnEvent) -> api.ArtifactsResult:
    return api.ArtifactsResult(artifacts=(await tools.client.ls())[: given.limit])


async def _fetch(tools: ToolContext, given: FetchArguments, on_event: OnEvent) -> api.FetchResult:
    return (await tools.client.fetch(str(parse_reference(given.ref)), on_event=on_event)).report


async def _publish(tools: ToolContext, given: PublishArguments, on_event: OnEvent) -> api.PublishResult:
    text = await asyncio.to_thread(tools.folders.read, given.path)
    done = await tools.client.publish(text, group=tools.folders.group, on_event=on_event)
    tools.folders.note(given.path, done.artifact)
    return done


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool.  `deep` and `without` are of the schema of its result, which the result itself keeps to."""

    name: str
    description: str
    arguments: type[Arguments]
    result: type[api.Result]
    call: Call
    read_only: bool = True
    destructive: bool = False
    open_world: bool = True
    without: tuple[str, ...] = ()
    deep: int = 0

    def input_schema(self) -> dict[str, Any]:
        """Return the schema of the arguments."""
        return arguments_schema(self.arguments)

    def output_schema(self) -> dict[str, Any]:
        """Return the schema of the result."""
        return result_schema(self.result, self.without, self.deep)

    def parse(self, given: object) -> Arguments:
        """Read the arguments of a call.  Raises `UsageError` naming the one that is wrong."""
        try:
            return msgspec.convert(given, self.arguments)
        except (msgspec.ValidationError, RecursionError) as error:
            raise UsageError(f"{self.name}: {error}", cause="an argument of another form") from error

    def content(self, result: api.Result) -> dict[str, Any]:
        """Return the JSON form of a result, without what its schema leaves out."""
        return {name: value for name, value in result.to_json().items() if name not in self.without}


TOOLS = (
    Tool(
        "find",
        "Who has a document's KV cache, here and at peers. Fetches nothing.",
        OfDocument,
        api.FindResult,
        _find,
        deep=1,
    ),
    Tool(
        "plan",
        "Would ask fetch a cache or prefill? Seconds, dollars, reason. Transfers nothing.",
        OfDocument,
        api.PlanResult,
        _plan,
        without=("basis", "hosts"),
    ),
    Tool(
        "ask",
        "Answer a question about a document with the node's own model, from a published cache where that is faster. "
        "A long document need not enter your context.",
        AskArguments,
        api.AskResult,
        _ask,
        read_only=False,
        without=("token_ids", "logits_digest"),
    ),
    Tool(
        "why",
        "Why a cache would be used or not: figures behind the plan, trust and problems of each artifact.",
        OfDocument,
        api.WhyResult,
        _why,
        deep=1,
    ),
    Tool(
        "list",
        "Artifacts in this node's store, newest first.",
        ListArguments,
        api.ArtifactsResult,
        _list,
        open_world=False,
        deep=1,
    ),
    Tool(
        "fetch",
        "Make a published cache local and verified, where that is worth it.",
        FetchArguments,
        api.FetchResult,
        _fetch,
        read_only=False,
    ),
    Tool(
        "publish",
        "Prefill a file and offer its KV cache to peers. IT REVEALS THE TEXT and cannot be called back from who has "
        "it: only on the user's own wish.",
        PublishArguments,
        api.PublishResult,
        _publish,
        read_only=False,
        destructive=True,
        without=("files", "left_out", "checkpoints", "state_bytes"),
    ),
)
