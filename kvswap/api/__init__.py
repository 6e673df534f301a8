"""The contract of the local API: requests, results and events, once, for command line, clients, daemon and exchange.

ImportEvent this loads nothing; a request loads msgspec and the planner's words, a result the module of its subject, and
neither aiohttp nor torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvswap.api.advice import (
        AdviceResult,
        PrefixAdvice,
        SharingBreak,
    )
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
        PublishedFile,
        PublishResult,
        TrainResult,
    )
    from kvswap.api.chat import (
        PartTokens,
        RenderResult,
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
        PlanRequest,
        PrefixRequest,
        PublishRequest,
        RenderRequest,
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
    from kvswap.api.why import (
        WhyArtifact,
        WhyResult,
    )

_WHERE = {
    "requests": """
        AskRequest CollectRequest FetchRequest FindRequest GroupRequest JoinRequest PlanRequest PrefixRequest
        PublishRequest RenderRequest Request Terms TrainRequest TrustRequest VerifyRequest WithdrawRequest aim_fields
        to_body""",
    "result": """
        OpenResult Result plain""",
    "advice": """
        AdviceResult PrefixAdvice SharingBreak""",
    "archives": """
        Exported Imported""",
    "caches": """
        AskResult ComputedResult DivergenceFigures FetchResult HostAnswer PrefixIndex PrefixResult PublishResult
        PublishedFile TrainResult""",
    "chat": """
        PartTokens RenderResult""",
    "events": """
        CheckEvent DisputeEvent ExportEvent FilledEvent FoundEvent ImportEvent IntervalsEvent NodeEvent NoiseEvent
        OtherEvent PlanEvent PrefillEvent ProgressEvent ReservationEvent SourcePeer TokenEvent TrainEvent
        TransferEvent UncheckableEvent event_of""",
    "find": """
        FindResult FoundArtifact FoundPrefix Holder""",
    "hosts": """
        HostRow HostsResult JoinResult""",
    "node": """
        AliveResult IdentityResult ModelEntry ModelRow ModelsResult ReadyResult SettingRow SettingsResult
        StopResult setting_rows""",
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
    "why": """
        WhyArtifact WhyResult""",
}
_MODULES = {name: module for module, names in _WHERE.items() for name in names.split()}

__all__ = [
    "AskRequest",
    "CollectRequest",
    "FetchRequest",
    "FindRequest",
    "GroupRequest",
    "JoinRequest",
    "PlanRequest",
    "PrefixRequest",
    "PublishRequest",
    "RenderRequest",
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
    "AdviceResult",
    "PrefixAdvice",
    "SharingBreak",
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
    "PublishedFile",
    "TrainResult",
    "PartTokens",
    "RenderResult",
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
    "WhyArtifact",
    "WhyResult",
]


def __getattr__(name: str) -> Any:
    # Lazy: most commands ask for something without a body, and take one kind of result.
    if name not in _MODULES:
        raise AttributeError(f"module 'kvswap.api' has no attribute {name!r}")
    return getattr(import_module(f"kvswap.api.{_MODULES[name]}"), name)
