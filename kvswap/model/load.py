"""Loading a model for computing: weights, tokenizer, identity, and the numerics it runs under."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvswap.artifact.manifest import ModelIdentity, Numerics
from kvswap.core.errors import Incompatible, InvalidDocument, UsageError
from kvswap.model import adapters, computing, opening, precision, reach
from kvswap.model.identity import directory_identity
from kvswap.model.kernels import initialize_kernels
from kvswap.model.processor import isa

SCHEDULE = "blocks"  # prefill in blocks of a fixed number of tokens, one forward each, from position 0


@dataclass(slots=True)
class LoadedModel:
    """A model ready to run, with its tokenizer and identity; `dtype` is the compute dtype by name, e.g. `bfloat16`."""

    model: Any
    tokenizer: Any
    identity: ModelIdentity | None  # None: the caller's object, which is only used to prefill
    dtype: str
    device: str

    @property
    def context(self) -> int:
        """The longest sequence the model was made for, in tokens."""
        config = self.model.config.get_text_config(decoder=True)
        return int(getattr(config, "max_position_embeddings", 0) or 1 << 30)

    @property
    def vocabulary(self) -> int:
        """The number of tokens that have an embedding."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def longest(self) -> int:
        """The longest text, in tokens, that is computed with one rotary table and fits the context."""
        return reach.longest(self.model.config.get_text_config(decoder=True), self.context)

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of a document; see `document_ids`."""
        return document_ids(self.tokenizer, text)

    def tokenize_continuation(self, text: str) -> list[int]:
        """Return the token ids of a text that follows a document; see `continuation_ids`."""
        return continuation_ids(self.tokenizer, text)

    def numerics(self) -> Numerics:
        """Return the numerics that a claim of bitwise equality is bound to: schedule, libraries, device, dtype."""
        import torch
        import transformers

        return Numerics(
            schedule=SCHEDULE,
            attention=computing.attention_text(self.model),
            compute_dtype=self.dtype,
            torch=str(torch.__version__),
            transformers=str(transformers.__version__),
            device=_device_name(self.device),
            isa=isa(self.device, self.dtype),
            threads=torch.get_num_threads(),
            claim="bitwise",
        )

    def rope(self) -> str:
        """Return the RoPE parameters as canonical JSON text."""
        return rope_text(self.model.config.get_text_config(decoder=True))


def rope_text(config: Any) -> str:
    """Return the RoPE parameters of a text configuration as canonical JSON text."""
    return json.dumps(getattr(config, "rope_parameters", None), sort_keys=True, separators=(",", ":"))


def _device_name(device: str) -> str:
    import torch

    if device.startswith("cuda"):
        return f"cuda:{torch.cuda.get_device_name(device)}"
    return device


def quiet_transformers() -> None:
    """Turn off the progress bars and warnings of transformers, which are meant for people at a prompt."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module="transformers")


def load_tokenizer(directory: Path) -> Any:
    """Load a tokenizer without its model.  Raises `Incompatible` if the directory has no usable one."""
    quiet_transformers()
    return opening.open_tokenizer(directory, directory.name)


def document_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a document, with the special tokens that the tokenizer puts before a text.

    Special tokens behind the text, such as an end of text, are left out, as a question follows.  Raises
    `InvalidDocument` for a text without tokens, `Incompatible` for a tokenizer whose special tokens stand elsewhere.
    """
    ids: list[int] = list(tokenizer(text, add_special_tokens=True, verbose=False)["input_ids"])
    if behind := _behind(tokenizer):
        ids = ids[:-behind]
    if not ids:
        raise InvalidDocument("the document has no tokens")
    return ids


def _behind(tokenizer: Any) -> int:
    """Return how many special tokens the tokenizer puts behind every text."""
    sample = "text"
    marked, bare = (
        list(tokenizer(sample, add_special_tokens=special, verbose=False)["input_ids"]) for special in (True, False)
    )
    more = len(marked) - len(bare)
    for before in range(more, -1, -1):
        if marked[before : before + len(bare)] == bare:
            return more - before
    raise Incompatible(
        f"the special tokens of this tokenizer ({type(tokenizer).__name__}) stand neither before nor behind a text",
        cause="a document's tokens could not be told from what follows it",
        field="tokenizer",
    )


def continuation_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text that follows a document, without special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def _has_gpu(device: str) -> bool:
    """Return True if this machine has a CUDA device of this name: `cuda`, or `cuda:` and its number."""
    import torch

    number = device.removeprefix("cuda").removeprefix(":") if device != "cuda" else "0"
    return torch.cuda.is_available() and number.isdecimal() and int(number) < torch.cuda.device_count()


def load_model(directory: Path, label: str, dtype: str, device: str = "cpu", threads: int = 0) -> LoadedModel:
    """Load a model from a local directory; nothing is downloaded, and no code in the directory is run.

    `threads` sets torch's number of threads, 0 leaves it.  Raises `UsageError` for an unknown dtype or a missing
    device, and `Incompatible` if the model that would run is not the one that the files hold.
    """
    import torch

    from kvswap.model import probing

    initialize_kernels()
    precision.set_full()
    quiet_transformers()
    if dtype not in ("bfloat16", "float16", "float32"):
        raise UsageError(f"unknown dtype {dtype!r}", hint="bfloat16, float16 or float32")
    if device.startswith("cuda") and not _has_gpu(device):
        raise UsageError(f"no device {device!r} on this machine", hint="kvswap daemon --device cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UsageError("no device 'mps' on this machine", hint="kvswap daemon --device cpu")
    if threads:
        torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    before = adapters.state(directory)
    identity = directory_identity(directory, label)
    model, tokenizer = opening.open_model(directory, label, getattr(torch, dtype))
    model.eval().to(device)
    probing.check_cache(model)
    if adapters.state(directory) != before:
        raise Incompatible(
            f"the files of {label!r} changed while they were loaded", cause="another program writes them", field="model"
        )
    return LoadedModel(model, tokenizer, identity, dtype, device)
