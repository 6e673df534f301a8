"""What an engine is told about kvswap: `kv_connector_extra_config`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from kvswap.core import checks
from kvswap.core.errors import UsageError
from kvswap.core.limits import LIMITS
from kvswap.core.settings import CODECS, Fault, invalid

PUBLISH = ("never", "asked", "repeated")
_PLACE = "kv_connector_extra_config"


def _home(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("a directory")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


_CHECKS: dict[str, checks.Check] = {
    "home": _home,
    "group": checks.group,
    "block_tokens": checks.whole(1, LIMITS.block_tokens),
    "min_tokens": checks.whole(1, 1 << 40),
    "lookup_seconds": checks.number(1e-3, LIMITS.api_seconds),
    "force": _flag,
    "local": _flag,
    "publish": checks.choice(*PUBLISH),
    "codec": checks.choice(*CODECS),
    "compare": _flag,
}


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
        """Judge every key and value.  Raises `InvalidSettings` naming all that cannot be used."""
        faults = []
        for name, value in extra.items():
            if name not in _CHECKS:
                known = ", ".join(f.name for f in fields(cls))
                faults.append(Fault(name, _PLACE, f"unknown key {checks.shown(name)}, which is none of {known}"))
                continue
            try:
                _CHECKS[name](value)
                if isinstance(value, str) != (name in ("home", "group", "publish", "codec")):
                    raise ValueError("a number")  # text of one is for the environment
            except ValueError as error:
                faults.append(Fault(name, _PLACE, f"{name} = {checks.shown(value)} is not {error}"))
        if faults:
            raise invalid(faults)
        made = cls(**extra)
        if made.publish == "repeated" and made.group is None:
            raise UsageError(
                '"publish": "repeated" needs a "group"',
                cause="a conversation repeats its own beginning, and a published cache reveals its text",
            )
        return made
