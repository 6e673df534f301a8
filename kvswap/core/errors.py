"""The one tree of exceptions.

Every error that kvswap raises on purpose derives from `KvswapError` and carries what happened (with the id), one likely
cause, and a hint with the command that helps.  The exit code of the command line and the status of the HTTP API both
come from the class, so a verb never catches errors itself.

>>> try:
...     raise NotFound("no peer offers sha256:ab…", hint="kvswap peers")
... except KvswapError as error:
...     error.exit_code
5
"""

from __future__ import annotations

from typing import Any, ClassVar

from kvswap.core.text import printable


class KvswapError(Exception):
    """The base of every error of this package, with a message, a likely cause and a hint.

    `code` names the kind in JSON, `exit_code` is the command line's, `http_status` the local API's; `retryable` errors
    may go away by themselves.
    """

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    longest: ClassVar[int] = 900  # characters of a message, cause or hint, which may quote what was given
    usual: ClassVar[tuple[str, str]] = (
        "kvswap could not do what was asked",
        "kvswap doctor",
    )  # cause and hint where the raising code has no better ones

    def __init__(
        self,
        message: str,
        *,
        cause: str | None = None,
        hint: str | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message := self._fit(message))
        self.message = message
        self.cause = self._fit(cause or self.usual[0])
        self.hint = self._fit(hint or self.usual[1])
        self.details = details
        self.origin: BaseException | None = None  # the foreign exception that `core.failures` converted

    def _fit(self, text: str) -> str:
        """Make a text fit for a terminal and a log: one line of bounded length, whatever names and paths it has."""
        shown = printable(text[: self.longest + 1])
        return shown if len(shown) <= self.longest else shown[: self.longest] + " …"

    def about(self, name: str) -> None:
        """Add the name of what the error is about to its message, such as a file that the raising code did not know."""
        if name not in self.message:
            self.message = self._fit(f"{name}: {self.message}")
            self.args = (self.message,)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, as the API sends it."""
        out: dict[str, Any] = {"code": self.code, "message": self.message, "cause": self.cause, "hint": self.hint}
        if self.details:
            out["details"] = self.details
        return out

    @staticmethod
    def from_dict(data: dict[str, Any]) -> KvswapError:
        """Rebuild the error that `to_dict` described; an unknown code becomes the base class, no value is trusted."""
        by_code = {kind.code: kind for kind in _subclasses(KvswapError)}  # some are defined in packages above
        kind = by_code.get(str(data.get("code")), KvswapError)
        details = data.get("details")
        named = details if isinstance(details, dict) else {}
        cause, hint = (str(data[name]) if data.get(name) else None for name in ("cause", "hint"))
        more = {str(k): v for k, v in named.items() if str(k) not in ("self", "message", "cause", "hint")}
        return kind(str(data.get("message", "unknown error")), cause=cause, hint=hint, **more)


class UsageError(KvswapError):
    """A request that is wrong itself: its flags, a malformed id, a document that cannot be used."""

    code = "usage"
    usual = ("a typing error, or a value of another form", "kvswap --help")
    exit_code = 2
    http_status = 400


class InvalidDocument(UsageError):
    """A document that is empty, not UTF-8 text, too large, or longer than the model's context."""

    code = "invalid_document"
    usual = ("it is not text that a model can read", "give it as UTF-8 text")


class InvalidSettings(UsageError):
    """Settings that are unknown or have impossible values; `details['faults']` lists each with its place."""

    code = "invalid_settings"
    longest = 9_000  # all faults at once
    usual = ("a typing error", "docs/configuration.md has every setting")


class Untrusted(KvswapError):
    """A publisher that is not trusted, or a statement that has expired."""

    code = "untrusted"
    usual = ("its publisher is not on the trust list, or its time is over", "kvswap trust ls")
    exit_code = 4
    http_status = 403


class NotAMember(Untrusted):
    """An artifact that is encrypted for a group whose key this node does not have."""

    code = "not_a_member"
    usual = ("nobody gave this node the group's key", "kvswap group import")


class NotFound(KvswapError):
    """A reference that nothing answers to, neither here nor at any reachable peer."""

    code = "not_found"
    usual = ("it was never here, or it was removed", "kvswap ls")
    exit_code = 5
    http_status = 404


class IntegrityError(KvswapError):
    """Bytes that are not what a digest or a signature says they are."""

    code = "integrity"
    usual = ("a damaged disk, or somebody who changed bytes", "kvswap verify --store")
    exit_code = 6
    http_status = 422


class Incompatible(KvswapError):
    """A model, dtype, layout or format version other than the one here; `details['field']` names which."""

    code = "incompatible"
    usual = ("it is of another model, dtype or version", "kvswap status")
    exit_code = 7
    http_status = 409


class MalformedManifest(Incompatible):
    """Bytes that are not a well-formed manifest of version 1."""

    code = "malformed_manifest"
    usual = ("it was cut off or changed, or is no manifest of kvswap", "kvswap manifest check --help")


class MalformedArchive(Incompatible):
    """A file that is not the archive of an artifact, or only the beginning of one."""

    code = "malformed_archive"
    usual = ("it was cut off or changed, or kvswap export did not make it", "kvswap export REF FILE makes one")


class MalformedState(Incompatible):
    """Bytes that are not a saved state of llama.cpp, or only the beginning of one."""

    code = "malformed_state"
    usual = ("it was cut off or changed, or llama.cpp did not write it", "save it again; docs/llamacpp.md")


class PlanSaysPrefill(KvswapError):
    """A fetch that was planned and is not worth it; `details['plan']` has the figures."""

    code = "plan_says_prefill"
    usual = ("prefilling is better here", "--force fetches all the same")
    exit_code = 8
    http_status = 409


class PeerError(KvswapError):
    """A peer that failed, sent invalid data, or went away, with no other peer to take its place."""

    code = "peer"
    usual = ("the peer failed, or the way to it", "kvswap peers")
    exit_code = 9
    http_status = 502
    retryable = True


class MalformedMessage(PeerError):
    """A message of a peer, or of the model process, that does not follow the protocol."""

    code = "malformed_message"
    usual = ("the other side speaks another version, or is broken", "kvswap --version")
    retryable = False


class NetworkTimeout(PeerError):
    """A peer that did not answer in time."""

    code = "timeout"
    http_status = 504


class PeerBusy(PeerError):
    """A peer that is at its limits, or does not serve this node now."""

    code = "busy"


class TokenRefused(PeerError):
    """A bearer token that is missing, expired, revoked, or of another node."""

    code = "token_refused"
    http_status = 401


class QuotaExceeded(PeerError):
    """A host that answers no more for now; `details['retry_after']` is in seconds."""

    code = "quota"
    http_status = 429


class OriginError(PeerError):
    """An origin that failed, is not there, or holds something else than it should."""

    code = "origin"
    usual = ("the origin failed, or the way to it", "kvswap origin test URL")


class OriginRefused(OriginError):
    """An origin that refuses this node: wrong credentials, or no right to do this."""

    code = "origin_refused"
    usual = ("the credentials are wrong, or do not allow this", "kvswap origin test URL")
    retryable = False


class P2pDown(PeerError):
    """A request that needs the peer-to-peer part of this node, which is not running; the local store still works."""

    code = "p2p_down"
    http_status = 503


class DaemonNotRunning(KvswapError):
    """A home directory for which no daemon answers."""

    code = "daemon_not_running"
    usual = ("it was not started, or it ended", "kvswap daemon &")
    exit_code = 10
    http_status = 503


class DaemonSilent(DaemonNotRunning):
    """A daemon that runs and does not answer."""

    code = "daemon_silent"
    http_status = 504
    retryable = True


class StoreLocked(KvswapError):
    """A home directory that another process holds."""

    code = "store_locked"
    usual = ("another kvswap process has it", "kvswap status")
    exit_code = 11


class StoreFull(KvswapError):
    """A quota or a disk without space; nothing was lost."""

    code = "store_full"
    usual = ("no space is left; nothing was lost", "kvswap gc")
    exit_code = 12
    http_status = 507


class WorkerFailed(KvswapError):
    """A model process that died or could not do the job."""

    code = "worker_failed"
    usual = ("a fault in a library, or not enough memory", "kvswap status")
    retryable = True


class LocalFault(KvswapError):
    """A refusal of this machine: a permission, a read-only or failing disk, no memory, no file handles."""

    code = "local"
    usual = ("this machine's system refused it", "kvswap doctor")


class TookTooLong(KvswapError):
    """An operation on this machine that did not end in its time."""

    code = "took_too_long"
    usual = ("this machine is busy, or something it waits for hangs", "kvswap status")
    http_status = 504
    retryable = True


class Unexpected(KvswapError):
    """A fault of kvswap's own; its traceback is in the log."""

    code = "internal"
    usual = ("kvswap itself, not what was asked of it", "kvswap.log in the home has the traceback")


class Interrupted(KvswapError):
    """An interruption by the user; what was fetched stays and the next run resumes."""

    code = "interrupted"
    usual = ("Ctrl-C, or the caller went away", "the same command resumes")
    exit_code = 130


def _subclasses(kind: type[KvswapError]) -> list[type[KvswapError]]:
    return [kind] + [c for child in kind.__subclasses__() for c in _subclasses(child)]
