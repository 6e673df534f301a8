"""The bodies of the local API's requests, one struct each.

A field's name on the wire is the struct's, or the `name` given with it.  Fields that are not known are ignored, so that
a newer client can speak to an older daemon; null means that a field is absent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType, field

from kvswap.core.defaults import ANSWER_TOKENS
from kvswap.core.limits import LIMITS
from kvswap.cost import Objective

MOST = 1e18  # of whatever is counted in a request

Amount = Annotated[float, Meta(ge=0, le=MOST)]
Samples = Annotated[int, Meta(ge=1, le=LIMITS.audit_samples)]
AnswerTokens = Annotated[int, Meta(ge=1, le=LIMITS.host_tokens)]
Aim = Literal["mix", "time", "money"]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a request."""


class Terms(Request, frozen=True, kw_only=True):
    """The terms of a caller: what it accepts beyond what is safe by itself, wants to save, and will not pay."""

    force: bool = False
    """Fetch although the plan says that prefilling is better."""
    trust_on_first_use: bool = field(default=False, name="tofu")
    """Trust the publisher from now on, if it is not known yet."""
    allow_lossy: bool = field(default=False, name="inexact")
    """Take a cache that is not the model's own to the bit."""
    allow_untrusted: bool = field(default=False, name="strangers")
    """Take an untrusted publisher's artifact once it is verified by recomputing."""
    samples: Samples = LIMITS.usual_samples
    """Positions that are computed again for that."""
    group: str | None = None
    """Look only among what is sealed for this group."""
    aim: Aim = field(default="mix", name="objective")
    """The aim: to save time, money, or a mix of both."""
    max_seconds: Amount | None = None
    max_dollars: Amount | None = None
    max_bytes: Amount | None = None

    @property
    def objective(self) -> Objective:
        """The aim and the budgets, as the planner takes them."""
        most = int(self.max_bytes) if self.max_bytes is not None else None
        return Objective(self.aim, self.max_seconds, self.max_dollars, most)

    def terms(self) -> Terms:
        """Copy the terms alone out of a request, which may hold a document's text."""
        return Terms(**{name: getattr(self, name) for name in Terms.__struct_fields__})


def aim_fields(objective: Objective) -> dict[str, Any]:
    """Name an objective's parts as `Terms` does."""
    aim: Aim = objective.by  # type: ignore[assignment]  # the daemon refuses another
    return {
        "aim": aim,
        "max_seconds": objective.max_seconds,
        "max_dollars": objective.max_dollars,
        "max_bytes": objective.max_bytes,
    }


class FetchRequest(Terms, frozen=True, kw_only=True):
    """The request `POST /v1/fetch`: make an artifact local and verified."""

    ref: str
    text: str | None = None


class FindRequest(Request, frozen=True, kw_only=True):
    """The request `POST /v1/find`: who has an artifact or a document, without fetching any of it."""

    ref: str
    text: str | None = None
    """The document: where nobody offers it, its longest published prefix is looked for."""
    model: str | None = None
    """A model's label, directory or identity (its first 8 digits in hex at least): leave out what others made."""
    publisher: str | None = None
    """A publisher's PeerId: leave out what others signed."""
    group: str | None = None
    """Look only among what is sealed for this group."""


class OriginRequest(Request, frozen=True, kw_only=True):
    """The request `POST /v1/origins` and `POST /v1/origins/test`: an origin, with the names of `[[origins]]`."""

    url: str
    endpoint: str = ""
    """The address of an S3 store other than Amazon's."""
    region: str = ""
    profile: str = ""
    """A profile of the store's own file of credentials."""
    price_per_gb: Amount = 0.0
    """US dollars for a gigabyte read there."""
    price_per_request: Amount = 0.0
    """US dollars."""
    write: bool = False


class PushRequest(Request, frozen=True, kw_only=True):
    """The request `POST /v1/push`: put an artifact in the store at an origin."""

    ref: str
    to: OriginRequest | None = None
    """Where; without it, every origin that is for writing."""
    group: str | None = None
    """The group for which the artifact of a document is sealed."""


class PlanRequest(FetchRequest, frozen=True, kw_only=True):
    """The request `POST /v1/plan`: weigh fetching, prefilling, both at once and a host."""

    host: str | None = None
    """A host's PeerId, or `auto` for the best of those known."""
    question: str = ""
    max_tokens: AnswerTokens = ANSWER_TOKENS


class AskRequest(FetchRequest, frozen=True, kw_only=True):
    """The request `POST /v1/ask`: answer a question from a document's cache."""

    question: str
    max_tokens: AnswerTokens = ANSWER_TOKENS
    prefill: bool = False
    """Prefill here, whatever peers offer."""
    ignore_eos: bool = False
    """Make exactly `max_tokens` tokens."""
    continuation: str | None = None
    """The text that follows the document, where it is a conversation: in the place of a user turn with the question."""
    host: str | None = None
    """Let this host answer, or with `auto` the best of those known where the plan says so."""


class PrefixRequest(Terms, frozen=True, kw_only=True):
    """The request `POST /v1/beginning`: the longest published prefix of a document, given by ids or chain digests."""

    model: str
    """The model's digest, in hex."""
    dtype: str
    block_tokens: Annotated[int, Meta(ge=1, le=LIMITS.block_tokens)]
    ids: str | UnsetType = UNSET
    """Token ids, u32 little endian, in base64."""
    chain: list[str] | None = None
    """Digests of whole blocks, in hex, where there are no ids."""
    parts: bool = False
    """A document that ends within a block is of use to its end."""
    curve: tuple[Amount, Amount] | None = None
    """Seconds that a block costs to prefill who asks, and that each token before it adds."""
    seconds: Amount | None = None
    """The longest to wait for peers."""
    local: bool = False
    """Ask no peer."""


class PublishOptions(Request, frozen=True, kw_only=True):
    """The options of a publication."""

    model: str | None = None
    codec: str | None = None
    truncate: bool = False
    media_type: str = "text/plain"
    source: str | None = None
    group: str | None = None
    """Seal it for the members of this group."""
    checkpoints: Annotated[list[Annotated[int, Meta(ge=1)]], Meta(max_length=LIMITS.manifest_cuts)] = field(
        default_factory=list
    )
    """Token counts that a reader shall be able to resume at, beside the usual ones: the ends of common texts."""


class PublishRequest(PublishOptions, frozen=True, kw_only=True):
    """The request `POST /v1/publish`: prefill, sign and announce a document."""

    text: str


class RenderRequest(Request, frozen=True, kw_only=True):
    """The request `POST /v1/render`: write a conversation by a model's chat template."""

    messages: list[dict[str, Any]]
    """The messages in the form of OpenAI's API."""
    tools: list[dict[str, Any]] = field(default_factory=list)
    question: str | None = None
    """One more question of the user's: the text that follows for it is wanted too."""
    model: str | None = None


class TrainRequest(Request, frozen=True, kw_only=True):
    """The request `POST /v1/codec/train`: train the predictive codec on a directory of texts."""

    corpus: str
    tokens: Annotated[int, Meta(ge=1_000, le=1_000_000)]
    model: str | None = None


class VerifyRequest(Request, frozen=True, kw_only=True):
    """The request `POST /v1/verify`: check an artifact, or with `store` every file of the store."""

    ref: str | None = None
    store: bool = False
    level: Annotated[int, Meta(ge=0, le=7)] | None = None
    """The last verification level to make."""
    samples: Samples = LIMITS.usual_samples
    text: str | None = None


class CollectRequest(Request, frozen=True, kw_only=True):
    """The request `POST /v1/gc`: free room in the store."""

    target_bytes: Annotated[int, Meta(ge=0, le=1 << 62)] | None = None


class WithdrawRequest(Request, frozen=True, kw_only=True):
    """The request `POST /v1/artifacts/{ref}/withdraw`: take back what this node published."""

    why: str = ""


class TrustRequest(Request, frozen=True, kw_only=True):
    """The request `POST /v1/trust`: put a publisher on the allow-list."""

    peer: str
    label: str = ""


class GroupRequest(Request, frozen=True, kw_only=True):
    """The request `POST /v1/groups`: make a group of this name, or join the one of this key."""

    name: str | None = None
    key: str | None = None


class JoinRequest(Request, frozen=True, kw_only=True):
    """The request `POST /v1/hosts`: accept the invitation of a host."""

    invitation: str
    plain: bool = False
    """Also one over http."""


def to_body(request: Request) -> dict[str, Any]:
    """Turn a request into the JSON object that is sent; fields that are None are left out."""
    body = msgspec.to_builtins(request)
    return {name: value for name, value in body.items() if value is not None}
