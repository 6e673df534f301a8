"""The contract of the local API: requests, results and events, once, for command line, clients, daemon and exchange.

Importing this loads nothing; a request loads msgspec and the planner's words, a result the module of its subject, and
neither aiohttp nor torch.
"""

# ruff: noqa: I001 - it would give each name a statement of its own
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # each name twice: that is how a type checker is told that it is for others
    from kvswap.api.advice import (
        AdviceResult as AdviceResult,
        PrefixAdvice as PrefixAdvice,
        SharingBreak as SharingBreak,
    )
    from kvswap.api.archives import (
        Exported as Exported,
        Imported as Imported,
    )
    from kvswap.api.caches import (
        AskResult as AskResult,
        ComputedResult as ComputedResult,
        DivergenceFigures as DivergenceFigures,
        FetchResult as FetchResult,
        HostAnswer as HostAnswer,
        PrefixIndex as PrefixIndex,
        PrefixResult as PrefixResult,
        PublishResult as PublishResult,
        PublishedFile as PublishedFile,
        TrainResult as TrainResult,
    )
    from kvswap.api.chat import (
        PartTokens as PartTokens,
        RenderResult as RenderResult,
    )
    from kvswap.api.events import (
        CheckEvent as CheckEvent,
        DisputeEvent as DisputeEvent,
        ExportEvent as ExportEvent,
        FilledEvent as FilledEvent,
        FoundEvent as FoundEvent,
        ImportEvent as ImportEvent,
        IntervalsEvent as IntervalsEvent,
        NodeEvent as NodeEvent,
        NoiseEvent as NoiseEvent,
        OtherEvent as OtherEvent,
        PlanEvent as PlanEvent,
        PrefillEvent as PrefillEvent,
        ProgressEvent as ProgressEvent,
        PushEvent as PushEvent,
        ReservationEvent as ReservationEvent,
        SourcePeer as SourcePeer,
        TokenEvent as TokenEvent,
        TrainEvent as TrainEvent,
        TransferEvent as TransferEvent,
        UncheckableEvent as UncheckableEvent,
        event_of as event_of,
    )
    from kvswap.api.find import (
        FindResult as FindResult,
        FoundArtifact as FoundArtifact,
        FoundPrefix as FoundPrefix,
        Holder as Holder,
    )
    from kvswap.api.hosting import (
        ClientRow as ClientRow,
        ClientsResult as ClientsResult,
        HostReady as HostReady,
        HostedResult as HostedResult,
        HostedRow as HostedRow,
        HostingResult as HostingResult,
        InvitationResult as InvitationResult,
        ReceiptRow as ReceiptRow,
        ReceiptsResult as ReceiptsResult,
        RevokeResult as RevokeResult,
        UnhostingResult as UnhostingResult,
    )
    from kvswap.api.hosts import (
        HostRow as HostRow,
        HostsResult as HostsResult,
        JoinResult as JoinResult,
    )
    from kvswap.api.machine import (
        CompletionScript as CompletionScript,
        ConfigResult as ConfigResult,
        ConfigRow as ConfigRow,
        DaemonReady as DaemonReady,
        DoctorResult as DoctorResult,
        DoctorRow as DoctorRow,
        EndResult as EndResult,
        LogRow as LogRow,
        McpReady as McpReady,
        SignedFile as SignedFile,
    )
    from kvswap.api.models import (
        LayerRow as LayerRow,
        ModelCheck as ModelCheck,
        ModelRemoval as ModelRemoval,
        ModelRows as ModelRows,
        PullResult as PullResult,
        TensorRow as TensorRow,
    )
    from kvswap.api.node import (
        AliveResult as AliveResult,
        IdentityResult as IdentityResult,
        ModelEntry as ModelEntry,
        ModelRow as ModelRow,
        ModelsResult as ModelsResult,
        ReadyResult as ReadyResult,
        SettingRow as SettingRow,
        SettingsResult as SettingsResult,
        StopResult as StopResult,
        UiResult as UiResult,
        setting_rows as setting_rows,
    )
    from kvswap.api.origins import (
        OriginRemoved as OriginRemoved,
        OriginRow as OriginRow,
        OriginTest as OriginTest,
        OriginsResult as OriginsResult,
        PushResult as PushResult,
    )
    from kvswap.api.peers import (
        BlockResult as BlockResult,
        LeaveResult as LeaveResult,
        PeerRow as PeerRow,
        PeersResult as PeersResult,
    )
    from kvswap.api.plans import (
        CurveFigures as CurveFigures,
        HostWay as HostWay,
        LinkFigures as LinkFigures,
        PlanBasis as PlanBasis,
        PlanFigures as PlanFigures,
        PlanResult as PlanResult,
        PlanSummary as PlanSummary,
        PriceFigures as PriceFigures,
        SharedPrefix as SharedPrefix,
        TariffFigures as TariffFigures,
        WayFigures as WayFigures,
    )
    from kvswap.api.requests import (
        AskRequest as AskRequest,
        CollectRequest as CollectRequest,
        FetchRequest as FetchRequest,
        FindRequest as FindRequest,
        GroupRequest as GroupRequest,
        JoinRequest as JoinRequest,
        OriginRequest as OriginRequest,
        PlanRequest as PlanRequest,
        PrefixRequest as PrefixRequest,
        PublishRequest as PublishRequest,
        PushRequest as PushRequest,
        RenderRequest as RenderRequest,
        Request as Request,
        Terms as Terms,
        TrainRequest as TrainRequest,
        TrustRequest as TrustRequest,
        VerifyRequest as VerifyRequest,
        WithdrawRequest as WithdrawRequest,
        aim_fields as aim_fields,
        to_body as to_body,
    )
    from kvswap.api.result import (
        OpenResult as OpenResult,
        Result as Result,
        plain as plain,
    )
    from kvswap.api.status import (
        CodecFigures as CodecFigures,
        LoopState as LoopState,
        ModelState as ModelState,
        ProcessState as ProcessState,
        StatusResult as StatusResult,
        TableState as TableState,
    )
    from kvswap.api.store import (
        ArtifactDetails as ArtifactDetails,
        ArtifactsResult as ArtifactsResult,
        CollectResult as CollectResult,
        PinResult as PinResult,
        RemovalPreview as RemovalPreview,
        RemoveResult as RemoveResult,
        ShownArtifact as ShownArtifact,
        StoredArtifact as StoredArtifact,
        WithdrawResult as WithdrawResult,
    )
    from kvswap.api.trust import (
        AuditFinding as AuditFinding,
        AuditsResult as AuditsResult,
        BannedPublisher as BannedPublisher,
        GroupKey as GroupKey,
        GroupLeaveResult as GroupLeaveResult,
        GroupResult as GroupResult,
        GroupRow as GroupRow,
        GroupRows as GroupRows,
        GroupsResult as GroupsResult,
        RotateResult as RotateResult,
        TrustResult as TrustResult,
        TrustedPublisher as TrustedPublisher,
    )
    from kvswap.api.verification import (
        Check as Check,
        CoverageFigures as CoverageFigures,
        StoreCheck as StoreCheck,
        Verification as Verification,
        VerifyResult as VerifyResult,
    )
    from kvswap.api.why import (
        WhyArtifact as WhyArtifact,
        WhyResult as WhyResult,
    )

_WHERE = {
    "requests": """
        AskRequest CollectRequest FetchRequest FindRequest GroupRequest JoinRequest PlanRequest PrefixRequest
        PublishRequest PushRequest OriginRequest RenderRequest Request Terms TrainRequest TrustRequest
        VerifyRequest WithdrawRequest aim_fields to_body""",
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
        TransferEvent PushEvent UncheckableEvent event_of""",
    "find": """
        FindResult FoundArtifact FoundPrefix Holder""",
    "hosting": """
        ClientRow ClientsResult HostReady HostedResult HostedRow HostingResult InvitationResult ReceiptRow
        ReceiptsResult RevokeResult UnhostingResult""",
    "hosts": """
        HostRow HostsResult JoinResult""",
    "machine": """
        CompletionScript ConfigResult ConfigRow DaemonReady DoctorResult DoctorRow EndResult LogRow McpReady
        SignedFile""",
    "models": """
        LayerRow ModelCheck ModelRemoval ModelRows PullResult TensorRow""",
    "node": """
        AliveResult IdentityResult ModelEntry ModelRow ModelsResult ReadyResult SettingRow SettingsResult StopResult
        UiResult setting_rows""",
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
        ArtifactDetails ArtifactsResult CollectResult PinResult RemovalPreview RemoveResult ShownArtifact
        StoredArtifact WithdrawResult""",
    "trust": """
        AuditFinding AuditsResult BannedPublisher GroupKey GroupLeaveResult GroupResult GroupRow GroupRows
        GroupsResult RotateResult TrustResult TrustedPublisher""",
    "verification": """
        Check CoverageFigures StoreCheck Verification VerifyResult""",
    "why": """
        WhyArtifact WhyResult""",
}
_MODULES = {name: module for module, names in _WHERE.items() for name in names.split()}

__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    # Lazy: most commands ask for something without a body, and take one kind of result.
    if name not in _MODULES:
        raise AttributeError(f"module 'kvswap.api' has no attribute {name!r}")
    return getattr(import_module(f"kvswap.api.{_MODULES[name]}"), name)
