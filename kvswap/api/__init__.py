"""The contract of the local API: requests, results and events, once, for command line, clients, daemon and exchange.

ImportEvent this loads nothing; a request loads msgspec and the planner's words, a result the module of its subject, and
neither aiohttp nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvswap.api.archives import (
        Exported,
        Imported,
    )
    from kvswap.api.caches import (
        AskResult,
        ComputedResult,
        DivergenceFigures,
        FetchResult,
        HostAnswer,
        PrefixIndex,
        PrefixResult,
        PublishResult,
        TrainResult,
    )
    from kvswap.api.events import (
        CheckEvent,
        DisputeEvent,
        ExportEvent,
        FilledEvent,
        FoundEvent,
        ImportEvent,
        IntervalsEvent,
        NodeEvent,
        NoiseEvent,
        OtherEvent,
        PlanEvent,
        PrefillEvent,
        ProgressEvent,
        PushEvent,
        ReservationEvent,
        SourcePeer,
        TokenEvent,
        TrainEvent,
        TransferEvent,
        UncheckableEvent,
        event_of,
    )
    from kvswap.api.find import (
        FindResult,
        FoundArtifact,
        FoundPrefix,
        Holder,
    )
    from kvswap.api.hosts import (
        HostRow,
        HostsResult,
        JoinResult,
    )
    from kvswap.api.node import (
        AliveResult,
        IdentityResult,
        ModelEntry,
        ModelRow,
        ModelsResult,
        ReadyResult,
        SettingRow,
        SettingsResult,
        StopResult,
        setting_rows,
    )
    from kvswap.api.origins import (
        OriginRemoved,
        OriginRow,
        OriginsResult,
        OriginTest,
        PushResult,
    )
    from kvswap.api.peers import (
        BlockResult,
        LeaveResult,
        PeerRow,
        PeersResult,
    )
    from kvswap.api.plans import (
        CurveFigures,
        HostWay,
        LinkFigures,
        PlanBasis,
        PlanFigures,
        PlanResult,
        PlanSummary,
        PriceFigures,
        SharedPrefix,
        TariffFigures,
        WayFigures,
    )
    from kvswap.api.requests import (
        AskRequest,
        CollectRequest,
        FetchRequest,
        FindRequest,
        GroupRequest,
        JoinRequest,
        OriginRequest,
        PlanRequest,
        PrefixRequest,
        PublishRequest,
        PushRequest,
        Request,
        Terms,
        TrainRequest,
        TrustRequest,
        VerifyRequest,
        WithdrawRequest,
        aim_fields,
        to_body,
    )
    from kvswap.api.result import (
        OpenResult,
        Result,
        plain,
    )
    from kvswap.api.status import (
        CodecFigures,
        LoopState,
        ModelState,
        ProcessState,
        StatusResult,
        TableState,
    )
    from kvswap.api.store import (
        ArtifactDetails,
        ArtifactsResult,
        CollectResult,
        PinResult,
        RemoveResult,
        StoredArtifact,
        WithdrawResult,
    )
    from kvswap.api.trust import (
        AuditFinding,
        AuditsResult,
        BannedPublisher,
        GroupKey,
        GroupLeaveResult,
        GroupResult,
        GroupRow,
        GroupsResult,
        RotateResult,
        TrustedPublisher,
        TrustResult,
    )
    from kvswap.api.verification import (
        Check,
        CoverageFigures,
        StoreCheck,
        Verification,
        VerifyResult,
    )

_WHERE = {
    "requests": """
        AskRequest CollectRequest FetchRequest FindRequest GroupRequest JoinRequest OriginRequest PlanRequest
        PrefixRequest PublishRequest PushRequest Request Terms TrainRequest TrustRequest VerifyRequest
        WithdrawRequest aim_fields to_body""",
    "result": """
        OpenResult Result plain""",
    "archives": """
        Exported Imported""",
    "caches": """
        AskResult ComputedResult DivergenceFigures FetchResult HostAnswer PrefixIndex PrefixResult PublishResult
        TrainResult""",
    "events": """
        CheckEvent DisputeEvent ExportEvent FilledEvent FoundEvent ImportEvent IntervalsEvent NodeEvent NoiseEvent
        OtherEvent PlanEvent PrefillEvent ProgressEvent PushEvent ReservationEvent SourcePeer TokenEvent
        TrainEvent TransferEvent UncheckableEvent event_of""",
    "find": """
        FindResult FoundArtifact FoundPrefix Holder""",
    "hosts": """
        HostRow HostsResult JoinResult""",
    "node": """
        AliveResult IdentityResult ModelEntry ModelRow ModelsResult ReadyResult SettingRow SettingsResult
        StopResult setting_rows""",
    "origins": """
        OriginRemoved OriginRow OriginTest OriginsResult PushResult""",
    "peers": """
        BlockResult LeaveResult PeerRow PeersResult""",
    "plans": """
        CurveFigures HostWay LinkFigures PlanBasis PlanFigures PlanResult PlanSummary PriceFigures SharedPrefix
        TariffFigures WayFigures""",
    "status": """
        CodecFigures LoopState ModelState ProcessState StatusResult TableState""",
    "store": """
        ArtifactDetails ArtifactsResult CollectResult PinResult RemoveResult StoredArtifact WithdrawResult""",
    "trust": """
        AuditFinding AuditsResult BannedPublisher GroupKey GroupLeaveResult GroupResult GroupRow GroupsResult
        RotateResult TrustResult TrustedPublisher""",
    "verification": """
        Check CoverageFigures StoreCheck Verification VerifyResult""",
}
_MODULES = {name: module for module, names in _WHERE.items() for name in names.split()}

__all__ = [
    "AskRequest",
    "CollectRequest",
    "FetchRequest",
    "FindRequest",
    "GroupRequest",
    "JoinRequest",
    "OriginRequest",
    "PlanRequest",
    "PrefixRequest",
    "PublishRequest",
    "PushRequest",
    "Request",
    "Terms",
    "TrainRequest",
    "TrustRequest",
    "VerifyRequest",
    "WithdrawRequest",
    "aim_fields",
    "to_body",
    "OpenResult",
    "Result",
    "plain",
    "Exported",
    "Imported",
    "AskResult",
    "ComputedResult",
    "DivergenceFigures",
    "FetchResult",
    "HostAnswer",
    "PrefixIndex",
    "PrefixResult",
    "PublishResult",
    "TrainResult",
    "CheckEvent",
    "DisputeEvent",
    "ExportEvent",
    "FilledEvent",
    "FoundEvent",
    "ImportEvent",
    "IntervalsEvent",
    "NodeEvent",
    "NoiseEvent",
    "OtherEvent",
    "PlanEvent",
    "PrefillEvent",
    "ProgressEvent",
    "PushEvent",
    "ReservationEvent",
    "SourcePeer",
    "TokenEvent",
    "TrainEvent",
    "TransferEvent",
    "UncheckableEvent",
    "event_of",
    "FindResult",
    "FoundArtifact",
    "FoundPrefix",
    "Holder",
    "HostRow",
    "HostsResult",
    "JoinResult",
    "AliveResult",
    "IdentityResult",
    "ModelEntry",
    "ModelRow",
    "ModelsResult",
    "ReadyResult",
    "SettingRow",
    "SettingsResult",
    "StopResult",
    "setting_rows",
    "OriginRemoved",
    "OriginRow",
    "OriginsResult",
    "OriginTest",
    "PushResult",
    "BlockResult",
    "LeaveResult",
    "PeerRow",
    "PeersResult",
    "CurveFigures",
    "HostWay",
    "LinkFigures",
    "PlanBasis",
    "PlanFigures",
    "PlanResult",
    "PlanSummary",
    "PriceFigures",
    "SharedPrefix",
    "TariffFigures",
    "WayFigures",
    "CodecFigures",
    "LoopState",
    "ModelState",
    "ProcessState",
    "StatusResult",
    "TableState",
    "ArtifactDetails",
    "ArtifactsResult",
    "CollectResult",
    "PinResult",
    "RemoveResult",
    "StoredArtifact",
    "WithdrawResult",
    "AuditFinding",
    "AuditsResult",
    "BannedPublisher",
    "GroupKey",
    "GroupLeaveResult",
    "GroupResult",
    "GroupRow",
    "GroupsResult",
    "RotateResult",
    "TrustResult",
    "TrustedPublisher",
    "Check",
    "CoverageFigures",
    "StoreCheck",
    "Verification",
    "VerifyResult",
]


def __getattr__(name: str) -> Any:
    # Lazy: most commands ask for something without a body, and take one kind of result.
    if name not in _MODULES:
        raise AttributeError(f"module 'kvswap.api' has no attribute {name!r}")
    return getattr(import_module(f"kvswap.api.{_MODULES[name]}"), name)
