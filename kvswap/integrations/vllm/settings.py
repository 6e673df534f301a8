"""What an engine is told about kvswap: `kv_connector_extra_config`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from kvswap.core.errors import UsageError

_KINDS: dict[str, tuple[type, ...]] = {
    "home": (str,),
    "group": (str,),
    "block_tokens": (int,),
    "min_tokens": (int,),
    "lookup_seconds": (int, float),
    "force": (bool,),
    "local": (bool,),
    "publish": (str,),
    "codec": (str,),
    "compare": (bool,),
}
PUBLISH = ("never", "asked", "repeated")


@dataclass(frozen=True, slots=True)
class Settings:
    """All have defaults.  Seconds, and tokens of the model."""

    home: str | None = None  # of the node; None: KVSWAP_HOME, or the user's own
    group: str | None = None  # look only among what is sealed for this group
    block_tokens: int = 256  # of the artifacts that are looked for
    min_tokens: int = 256  # shorter prompts are neither looked up nor published
    lookup_seconds: float | None = None  # what a look-up may take; None: a fiftieth of the prompt's prefill
    force: bool = False  # load whatever is found, also where the plan says that prefilling is better
    local: bool = False  # look only into the node's own store, and tell no peer what prompts begin with
    publish: str = "never"  # "asked": what a request marks; "repeated": also what two requests began with
    codec: str = "planes"  # of what is published
    compare: bool = True  # what is published with what the node's own model process computes, where there is one

    @classmethod
    def of(cls, extra: dict[str, Any]) -> Settings:
        """Raises `UsageError` naming the key."""
        for name, value in extra.items():
            kinds = _KINDS.get(name)
            if kinds is None:
                raise UsageError(
                    f"unknown key {name[:40]!r} in kv_connector_extra_config",
                    hint=", ".join(f.name for f in fields(cls)),
                )
            right = isinstance(value, kinds) and (isinstance(value, bool) == (kinds == (bool,)))
            if not right or (isinstance(value, int | float) and not isinstance(value, bool) and value <= 0):
                raise UsageError(f"{name} in kv_connector_extra_config cannot be {str(value)[:40]!r}")
        made = cls(**extra)
        if made.publish not in PUBLISH:
            raise UsageError(f"publish in kv_connector_extra_config is one of {', '.join(PUBLISH)}")
        if made.publish == "repeated" and made.group is None:
            raise UsageError(
                '"publish": "repeated" needs a "group"',
                cause="a conversation repeats its own beginning, and a published cache reveals its text",
            )
        return made
