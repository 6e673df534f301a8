"""The contract of the local API: what is asked for, once, for command line, clients, daemon and exchange.

Importing this loads msgspec and the planner's arithmetic, and neither aiohttp nor torch.
"""

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
    "to_body",
]
