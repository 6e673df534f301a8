"""The settings of the connector: `kv_connector_extra_config`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from kvswap.core import checks
from kvswap.core.defaults import BLOCK_TOKENS
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
class ConnectorSettings:
    """The settings of the connector, all of which have defaults."""

    home: str | None = None  # the node's home directory; None: KVSWAP_HOME, or the user's own
    group: str | None = None  # find only artifacts that are encrypted for this group
    block_tokens: int = BLOCK_TOKENS  # block size of the artifacts to find and to publish
    min_tokens: int = BLOCK_TOKENS  # shorter prompts are neither looked up nor published
    lookup_seconds: float | None = None  # limit for a look-up; None: a fiftieth of the prompt's prefill
    force: bool = False  # load whatever is found, even if the plan says that prefilling is faster
    local: bool = False  # search only the node's own store, and disclose no prefix to peers
    publish: str = "never"  # "asked": what a request marks; "repeated": also a prefix that two requests share
    codec: str = "planes"  # of published artifacts
    compare: bool = True  # compare published caches with the node's own model process, if it has that model

    @classmethod
    def of(cls, extra: dict[str, Any]) -> ConnectorSettings:
        """Check every key and value.

        Raises `InvalidSettings` naming all that are wrong, or `UsageError` for a combination.
        """
        faults = []
        for name, value in extra.items():
            if name not in _CHECKS:
                known = ", ".join(f.name for f in fields(cls))
                faults.append(Fault(name, _PLACE, f"unknown key {checks.shown(name)}, which is none of {known}"))
                continue
            try:
                _CHECKS[name](value)
                if isinstance(value, str) != (name in ("home", "group", "publish", "codec")):
                    raise ValueError("a number")  # a number written as text is for the environment
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
