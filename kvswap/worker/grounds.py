"""What of an accusation's grounds this model process can see (see `trust.accusation`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from kvswap.artifact.manifest import Manifest
from kvswap.core.errors import Incompatible, InvalidDocument, KvswapError
from kvswap.model import precision
from kvswap.trust.accusation import Grounds, comparable, judge
from kvswap.trust.ladder import Step
from kvswap.worker.document import Document, rules_of

_TOKENISING = ("transformers",)  # all that the tokens of a text depend on beside the tokenizer's files


def static(loaded: Any, identity: bytes, manifest: Manifest, document: Document) -> Grounds:
    """The grounds that need no computing; `source` and `control` are left open."""
    if document.signed:  # two signed digests of the same ids: neither a model nor a tokenizer comes into it
        return Grounds(text="", weights="", numerics="", rules="")
    environment, less = loaded.numerics(), precision.reduced(loaded.device)
    names: Sequence[str] = ()
    if document.lie and not document.read_back:
        names = _TOKENISING
    return Grounds(
        text="" if document.ids is not None or document.lie else document.why,
        weights=_weights(loaded, identity, manifest),
        numerics=f"{less[0]}: this reader computes in reduced precision"
        if less
        else comparable(manifest.numerics, environment, *([names] if names else [])),
        rules=rules_of(manifest) or document.rules,
    )


def _weights(loaded: Any, identity: bytes, manifest: Manifest) -> str:
    """What is in memory now is compared with the model's files: what was loaded may have been changed since."""
    from kvswap.model.live import live_identity

    if identity != manifest.model.digest:
        return "this reader has another model"
    try:
        live = live_identity(loaded.model)
    except KvswapError as error:
        return f"this reader's model cannot be compared with its files: {error.message}"
    return "" if live == manifest.model.digest else "this reader's model is not that of its files any more"


def judged(
    look: Callable[[], Step],
    grounds: Callable[[], Grounds],
    again: Callable[[], None],
    control: Callable[[], str],
) -> Step:
    """What a step finds; of a failure, what it finds a second time, and whether that is a proof.

    `again`: reads the values from the signed bytes once more.  `control`: takes the step with this reader's own cache
    of the same tokens, and says why that does not pass; empty where it does.
    """
    step = look()
    if step.verdict != "failed":
        return step
    try:
        again()
    except KvswapError as error:  # of a cache that was computed in part not every chunk is here
        return judge(step, replace(grounds(), source=f"the signed bytes cannot be read again: {error.message}"))
    step = look()
    if step.verdict != "failed":
        return step
    found = replace(grounds(), source="")
    if found.lacking == (found.control,):  # all else holds: then it is worth computing
        found = replace(found, control=_controlled(control))
    return judge(step, found)


def _controlled(control: Callable[[], str]) -> str:
    try:
        return control()
    except (Incompatible, InvalidDocument) as error:  # not finite here either, or longer than it can be computed
        return f"this reader's own cache of the same tokens: {error.message}"
