"""From the daemon's view of an artifact to a cache in this process's model.

The daemon is not believed: signature and every digest are checked again here, and the model in memory
is compared with the weights that the artifact names.
"""

from __future__ import annotations

import base64
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kvswap.core.defaults import HEADROOM_TOKENS
from kvswap.core.errors import Incompatible, IntegrityError, Untrusted
from kvswap.core.failures import ours

if TYPE_CHECKING:
    from kvswap.artifact.manifest import Manifest
    from kvswap.model.load import LoadedModel
    from kvswap.trust import Statement


class Readable(Protocol):
    """The part of an artifact's details (`ArtifactDetails`) that is needed to read it."""

    @property
    def artifact(self) -> str:
        """The artifact's id."""

    @property
    def envelope(self) -> str:
        """The manifest with its signature, in base64."""

    @property
    def chunks_directory(self) -> str:
        """The directory of the chunk files."""

    @property
    def key(self) -> str | None:
        """The key that opens the files of an encrypted one, in hex."""


class Loadable(Readable, Protocol):
    """The part of an artifact's details that is needed to load it into a model."""

    @property
    def standing(self) -> str:
        """The standing of the artifact at its node: `own`, `trusted`, `verified` and so on."""


def statement_of(details: Readable) -> Statement:
    """Read what was signed from `Client.details`, and check it again here.  Raises `IntegrityError`."""
    from kvswap.trust import one_key, read_statement

    key = bytes.fromhex(details.key) if details.key is not None else None
    statement = read_statement(base64.b64decode(details.envelope), one_key(key))
    if str(statement.artifact) != details.artifact:
        raise IntegrityError(f"the daemon answered another artifact than {details.artifact}")
    return statement


@ours("loading the artifact")
def load_artifact(
    details: Loadable, model: Any, *, tokens: int | None = None, headroom: int = HEADROOM_TOKENS, goes_on: int = 0
) -> Any:
    """Load a `DynamicCache` by the answer of `GET /v1/artifacts/{id}`.  See `Artifact.load`.

    `goes_on` are the tokens that it is prefilled to before the caller's own.
    """
    from kvswap.artifact.assembly import load
    from kvswap.artifact.layout import check_compatible
    from kvswap.model import reach
    from kvswap.model.cache import build_cache
    from kvswap.model.shape import require_layers
    from kvswap.store.files import chunk_reader

    statement = statement_of(details)
    manifest = statement.manifest
    check_compatible(manifest, live_identity(model), str(model.dtype).removeprefix("torch."))
    require_layers(_in_memory(model), manifest)  # before anything is reserved for them
    read = chunk_reader(Path(details.chunks_directory))
    stop = manifest.prefix.tokens if tokens is None else tokens
    _require_verified(details, manifest, stop)
    text = model.config.get_text_config(decoder=True)
    reach.require_own(text, manifest.layout.rope, max(stop, goes_on), manifest.prefix.block_tokens)
    tensors = load(manifest, read, tokens=tokens, headroom=headroom, seal=statement.seal)
    return build_cache(model.config, tensors, stop, model.device)


def _require_verified(details: Loadable, manifest: Manifest, tokens: int) -> None:
    """Raise `Untrusted` if an untrusted publisher's artifact would be resumed before its end, after `tokens` tokens."""
    from kvswap.artifact.layout import uses_inner

    if uses_inner(manifest, tokens) and details.standing not in ("own", "trusted"):
        raise Untrusted(
            f"nothing but the whole of artifact {details.artifact} can be loaded: it is {details.standing}",
            cause="what it keeps of sliding layers, or as states, before its end is used of trusted publishers alone",
            hint=f"kvswap trust add {manifest.publisher}",
        )


def _in_memory(model: Any, tokenizer: Any = None) -> LoadedModel:
    """Return the caller's model as those that compute take one."""
    from kvswap.model.load import LoadedModel

    return LoadedModel(model, tokenizer, None, str(model.dtype).removeprefix("torch."), str(model.device))


@ours("comparing the model in memory with its files")
def live_identity(model: Any) -> bytes:
    """Return the identity of a transformers model in memory; see `kvswap.model.live`.  Raises `Incompatible`."""
    from kvswap.model.live import live_identity as identity

    for name, tensor in model.named_parameters():
        if tensor.device.type == "meta":
            raise Incompatible(
                f"{name!r} is not in memory, so the model cannot be compared with its files",
                cause="a part of the model is offloaded to the disk or to another device",
                hint="load the model whole, without device_map",
                field="model",
            )
    return identity(model)


@ours("looking at how this process computes")
def check_precision(model: Any) -> None:
    """Raise `Incompatible` where this process computes in reduced precision, before anything is fetched for it."""
    from kvswap.model.precision import check

    check(str(model.device))


class LocalPrefill:
    """Canonical prefill of a text in this process, from its start or from a fetched prefix."""

    @ours("preparing the prefill")
    def __init__(self, text: str, model: Any, tokenizer: Any, block_tokens: int) -> None:
        from kvswap.model import reach
        from kvswap.model.prefill import check_length

        check_precision(model)
        self._loaded = _in_memory(model, tokenizer)
        self._block_tokens, self._text = block_tokens, text
        self._ids = self._loaded.tokenize(text)
        self.tokens = len(self._ids)
        config = model.config.get_text_config(decoder=True)
        self._table = reach.table_alone(config, self._loaded.context, self.tokens)
        reach.set_back(model)
        check_length(self._loaded, self.tokens)

    @ours("preparing the prefill")
    def cached_prefix(self) -> dict[str, Any]:
        """Return what to ask the node for: chain digests and model identity in hex, dtype, block size."""
        from kvswap.artifact.chain import chain_digests

        identity = live_identity(self._loaded.model)
        chain = chain_digests(identity, self._ids, self._block_tokens)
        return {
            "chain": [digest.hex() for digest in chain],
            "model": identity.hex(),
            "dtype": self._loaded.dtype,
            "block_tokens": self._block_tokens,
        }

    @ours("prefilling")
    def cache(self, headroom: int, details: Loadable | None = None, tokens: int = 0) -> Any:
        """Make the whole cache; its first `tokens` tokens are those of `details`, if given, once layer 0 is theirs.

        Raises `IntegrityError` for a prefix that is proved to be of another text.
        """
        from kvswap.model import reach
        from kvswap.model.cache import new_cache
        from kvswap.model.prefill import canonical_prefill

        model, end = self._loaded.model, self.tokens
        if details is None:
            cache = new_cache(model.config, end + headroom)
        else:
            cache = load_artifact(details, model, tokens=tokens, headroom=end - tokens + headroom, goes_on=end)
            _look_at_first_layer(details, self._loaded, cache, self._text, tokens)
        if tokens < end:
            with reach.pinned(model, self._table):
                for _ in canonical_prefill(self._loaded, cache, self._ids, self._block_tokens, tokens):
                    pass
        return cache


@ours("loading the artifact")
def load_for(text: str, details: Loadable, model: Any, tokenizer: Any, headroom: int) -> Any:
    """Return the cache of an artifact that has to be of `text`: its token digest, and its layer 0 (V3), are compared.

    Raises `Incompatible` for another text, `IntegrityError` for a cache that is proved to be of another one.  Warns of
    what cannot be checked.
    """
    from kvswap.artifact.chain import token_digest
    from kvswap.model.load import document_ids
    from kvswap.trust.accusation import claims

    statement = statement_of(details)
    manifest = statement.manifest
    ids = document_ids(tokenizer, text)
    if token_digest(ids) != manifest.prefix.token_digest:
        raise Incompatible("the artifact's tokens are not those of this text", field="prefix.token_digest")
    cache = load_artifact(details, model, headroom=headroom)
    loaded = _in_memory(model, tokenizer)
    _look_at_first_layer(details, loaded, cache, text)
    for why in claims(manifest).values():
        warnings.warn(f"artifact {statement.artifact} cannot be checked: {why}", stacklevel=2)
    return cache


def _look_at_first_layer(details: Loadable, loaded: Any, cache: Any, text: str, tokens: int | None = None) -> None:
    """Compare layer 0 of what was just loaded, whole or its first `tokens` tokens, with the text (V3).

    Raises `IntegrityError` for a proof, warns of what cannot be compared.  A lossy cache says itself that it is not
    the model's.
    """
    from kvswap.artifact.assembly import load
    from kvswap.model import reach
    from kvswap.store.files import chunk_reader
    from kvswap.worker.document import of_prefix, of_text
    from kvswap.worker.first_layer import FirstLayer, require

    statement = statement_of(details)
    manifest = statement.manifest
    if not manifest.lossless:
        return
    read = chunk_reader(Path(details.chunks_directory))
    first = FirstLayer(
        loaded,
        live_identity(loaded.model),
        manifest,
        cache,
        of_text(loaded, manifest, text) if tokens is None else of_prefix(loaded, manifest, text, tokens),
        manifest.prefix.tokens if tokens is None else tokens,
        lambda: load(manifest, read, tokens=tokens, seal=statement.seal),
    )
    with reach.pinned(loaded.model, reach.recorded(manifest.layout.rope)):
        result = first.check()
    require(result)
    if result.verdict == "skipped":
        warnings.warn(f"layer 0 of {statement.artifact} cannot be checked: {result.why}", stacklevel=3)
