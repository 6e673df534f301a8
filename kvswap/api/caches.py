"""The results of publishing, fetching and asking."""

from __future__ import annotations

from msgspec import field

from kvswap.api.plans import PlanSummary
from kvswap.api.result import Result
from kvswap.api.verification import Verification


class DivergenceFigures(Result, frozen=True, kw_only=True):
    """The difference between the answers of a lossy cache, or of an engine's, and those of the exact one."""

    steps: int
    """The greedy tokens that were compared."""
    equal: int
    """The tokens among them that are the same in the same place."""
    first: int
    """The number of the first that differs, from 0; `steps` without one."""
    kl: int
    """The mean Kullback-Leibler divergence of the next token's distribution, in millionths of a nat."""


class PublishedFile(Result, frozen=True, kw_only=True):
    """A file of a folder that was published as one document."""

    path: str
    """The path in the folder."""
    sha256: str
    """The digest of its bytes, in hex."""
    bytes: int


class PublishResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap publish`: an artifact that this node signed and offers."""

    artifact: str
    document: str | None
    """The document's digest, `sha256:<hex>`."""
    group: str | None
    """The group that it is encrypted for."""
    model: str
    """The model's label."""
    tokens: int
    checkpoints: list[int]
    """The token counts that readers can resume at, of a model that keeps states or windows."""
    state_bytes: int
    """The bytes of the states at each of them."""
    raw_bytes: int
    wire_bytes: int
    codec: str
    lossless: bool = field(name="exact")
    divergence: DivergenceFigures | None
    """The difference that a lossy codec makes to answers; None for a lossless one."""
    seconds: float
    reused: bool
    """True if the node had published it already."""
    reused_tokens: int = 0
    """The tokens that were not computed, as this node had published another document with the same beginning."""
    files: list[PublishedFile] = field(default_factory=list)
    """The files of a folder, in the order in which the document has them."""
    left_out: list[str] = field(default_factory=list)
    """The files of it that are no text."""


class ComputedResult(Result, frozen=True, kw_only=True):
    """The result of publishing what an engine computed."""

    artifact: str
    tokens: int
    claim: str
    """The exactness claim: `token-verified` or `tolerance`."""
    compared: DivergenceFigures | None
    """The comparison with what the model process computes; None: there was none."""
    wire_bytes: int
    reused: bool


class TrainResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap codec train`: a predictor."""

    model: str
    predictor: str
    """The content id of the predictor."""
    bytes: int
    tokens: int
    """The tokens that it was trained on."""


class FetchResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap fetch`: an artifact that is whole in the store, and how it got there."""

    artifact: str
    plan: PlanSummary
    tokens: int
    codec: str
    lossless: bool = field(name="exact")
    wire_bytes: int
    """The bytes that were fetched now, and not here before."""
    raw_bytes: int
    peers: list[str] = field(name="from")
    """The peers that sent chunks."""
    seconds: float
    verified: bool
    verification: Verification


class PrefixResult(Result, frozen=True, kw_only=True):
    """The result of `cached_prefix`: the longest published prefix of a document, which is in the store now."""

    artifact: str
    tokens: int
    whole: bool
    """True if these are all tokens of the artifact."""
    plan: PlanSummary


class PrefixIndex(Result, frozen=True, kw_only=True):
    """The keys of all prefixes that a look-up could find."""

    version: str
    packed: str | None = field(name="keys")
    """The keys, 8 bytes each, in base64; None: there are too many, or none for everybody."""


class HostAnswer(Result, frozen=True, kw_only=True):
    """The word of a host on the answer that it gave, and what is wrong with its bill."""

    peer: str
    model: str
    cached_tokens: int | None
    """The tokens that it read from its cache; None without a receipt."""
    prefilled_tokens: int | None
    made_tokens: int | None
    dollars: float | None
    receipt: str | None
    """The record that it signed, in base64."""
    problem: str | None
    """The fault of the record of a hosted request; None: it is right."""


class AskResult(Result, frozen=True, kw_only=True):
    """The result of `kvswap ask`: an answer, and where the cache came from."""

    text: str
    token_ids: list[int]
    plan: PlanSummary
    ttft_seconds: float | None
    """The seconds to the first token, look-up and transfer included; None: no token was made."""
    logits_digest: str | None
    """The digest of all logits: equal for answers that are the same to the bit."""
    claim: str
    """The exactness of the answer: `bitwise`, or the word of who computed the cache or the answer."""
    tokens: int
    """The tokens of the document."""
    artifact: str | None
    """The artifact that the answer was made from; None: prefilled, or by a host."""
    unchecked: dict[str, str]
    """The levels that could not be checked, and why."""
    fetched_tokens: int
    """The tokens that came from the artifact."""
    computed_tokens: int
    """The tokens that were computed here."""
    wire_bytes: int
    """The bytes that were fetched."""
    peers: list[str] = field(name="from")
    """The peers that sent chunks."""
    ready_seconds: float | None
    """The seconds until the cache was ready."""
    load_seconds: float
    prefill_seconds: float
    seconds: float
    host: HostAnswer | None = None
    """The bill of the host that answered; None: the answer was made here."""
