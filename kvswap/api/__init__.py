"""The contract of the local API: what is asked for, once, for command line, clients, daemon and exchange.

Importing this loads nothing; a request loads msgspec and the planner's words, and neither aiohttp nor torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvswap.api.requests import (
        AskRequest,
        CollectRequest,
        FetchRequest,
        FindRequest,
        GroupRequest,
        JoinRequest,
        PlanRequest,
        PrefixRequest,
        PublishRequest,
        Request,
        Terms,
        TrainRequest,
        TrustRequest,
        VerifyRequest,
        WithdrawRequest,
        aim_fields,
        to_body,
    )

__all__ = [
    "AskRequest",
    "PrefixRequest",
    "CollectRequest",
    "FetchRequest",
    "FindRequest",
    "GroupRequest",
    "JoinRequest",
    "PlanRequest",
    "PublishRequest",
    "Request",
    "Terms",
    "TrainRequest",
    "TrustRequest",
    "VerifyRequest",
    "WithdrawRequest",
    "aim_fields",
    "to_body",
]


def __getattr__(name: str) -> Any:
    # Lazy: most commands ask for something without a body, and msgspec is a tenth of what they would wait for.
    if name in __all__:
        from kvswap.api import requests

        return getattr(requests, name)
    raise AttributeError(f"module 'kvswap.api' has no attribute {name!r}")
