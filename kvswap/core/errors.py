"""The one exception tree.

Every error kvswap raises on purpose derives from `KvswapError` and carries what happened (with the
id), one likely cause, and a hint with the command that helps.  The exit code of the command line
and the status of the HTTP API both come from the class, so a verb never catches errors itself.

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
    """Base of every error of this package."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    longest: ClassVar[int] = 900  # characters of a message, cause or hint: what was given may be in it
    usual: ClassVar[tuple[str, str]] = (
        "kvswap could not do what was asked",
        "kvswap doctor",
    )  # cause and hint where who raises it knows no better ones

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
        self.origin: BaseException | None = None  # what `core.failures` made this of

    def _fit(self, text: str) -> str:
        """Make a text fit for a terminal and a log: one line of bounded length, whatever names and paths it has."""
        shown = printable(text[: self.longest + 1])
        return shown if len(shown) <= self.longest else shown[: self.longest] + " …"

    def about(self, name: str) -> None:
        """Say in the message what it is about: a file that was named, of which the one who raised knew nothing."""
        if name not in self.message:
            self.message = self._fit(f"{name}: {self.message}")
            self.args = (self.message,)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as the API sends it."""
        out: dict[str, Any] = {"code": self.code, "message": self.message, "cause": self.cause, "hint": self.hint}
        if self.details:
            out["details"] = self.details
        return out

    @staticmethod
    def from_dict(data: dict[str, Any]) -> KvswapError:
        """The error that `to_dict` described; an unknown code becomes the base class, and no value is believed."""
        by_code = {kind.code: kind for kind in _subclasses(KvswapError)}  # some live in rooms above
        kind = by_code.get(str(data.get("code")), KvswapError)
        details = data.get("details")
        named = details if isinstance(details, dict) else {}
        cause, hint = (str(data[name]) if data.get(name) else None for name in ("cause", "hint"))
        more = {str(k): v for k, v in named.items() if str(k) not in ("self", "message", "cause", "hint")}
        return kind(str(data.get("message", "unknown error")), cause=cause, hint=hint, **more)


class UsageError(KvswapError):
    """The request itself is wrong: flags, a malformed id, a document that cannot be used."""

    code = "usage"
    usual = ("a typing error, or a value of another form", "kvswap --help")
    exit_code = 2
    http_status = 400


class InvalidDocument(UsageError):
    """The document is empty, not UTF-8 text, too large, or longer than the model's context."""

    code = "invalid_document"
    usual = ("it is not text that a model can read", "give it as UTF-8 text")


class InvalidSettings(UsageError):
    """Settings are unknown or have values that cannot be; `details['faults']` names each with its place."""

    code = "invalid_settings"
    longest = 9_000  # all faults at once
    usual = ("a typing error", "docs/configuration.md has every setting")


class Untrusted(KvswapError):
    """The publisher is not trusted, or the statement has expired."""

    code = "untrusted"
    usual = ("its publisher is not on the trust list, or its time is over", "kvswap trust ls")
    exit_code = 4
    http_status = 403


class NotAMember(Untrusted):
    """The artifact is sealed for a group whose key this node does not have."""

    code = "not_a_member"
    usual = ("nobody gave this node the group's key", "kvswap group import")


class NotFound(KvswapError):
    """Nothing here, or at any reachable peer, answers to this reference."""

    code = "not_found"
    usual = ("it was never here, or it was removed", "kvswap ls")
    exit_code = 5
    http_status = 404


class IntegrityError(KvswapError):
    """Bytes are not what a digest or a signature says they are."""

    code = "integrity"
    usual = ("a damaged disk, or somebody who changed bytes", "kvswap verify --store")
    exit_code = 6
    http_status = 422


class Incompatible(KvswapError):
    """Another model, dtype, layout or format version; `details['field']` names which."""

    code = "incompatible"
    usual = ("it is of another model, dtype or version", "kvswap status")
    exit_code = 7
    http_status = 409


class MalformedManifest(Incompatible):
    """The bytes are not a well-formed v1 manifest."""

    code = "malformed_manifest"
    usual = ("it was cut off or changed, or is no manifest of kvswap", "kvswap manifest check --help")


class PlanSaysPrefill(KvswapError):
    """Fetching was checked and is not worth it; `details['plan']` has the figures."""

    code = "plan_says_prefill"
    usual = ("prefilling is better here", "--force fetches all the same")
    exit_code = 8
    http_status = 409


class PeerError(KvswapError):
    """A peer failed, lied, or went away, and no other peer could take its place."""

    code = "peer"
    usual = ("the peer failed, or the way to it", "kvswap peers")
    exit_code = 9
    http_status = 502
    retryable = True


class MalformedMessage(PeerError):
    """A peer, or the model process, sent something that is not of the protocol."""

    code = "malformed_message"
    usual = ("the other side speaks another version, or is broken", "kvswap --version")
    retryable = False


class NetworkTimeout(PeerError):
    """A peer did not answer in time."""

    code = "timeout"
    http_status = 504


class PeerBusy(PeerError):
    """The peer is at its limits, or does not serve us now."""

    code = "busy"


class TokenRefused(PeerError):
    """A bearer token is expired, revoked, of another node, or no token at all."""

    code = "token_refused"
    http_status = 401


class QuotaExceeded(PeerError):
    """A host answers no more for now; `details['retry_after']`: seconds."""

    code = "quota"
    http_status = 429


class P2pDown(PeerError):
    """The peer-to-peer part of this node is not running; the local store still works."""

    code = "p2p_down"
    http_status = 503


class DaemonNotRunning(KvswapError):
    """No daemon answers for this home directory."""

    code = "daemon_not_running"
    usual = ("it was not started, or it ended", "kvswap daemon &")
    exit_code = 10
    http_status = 503


class DaemonSilent(DaemonNotRunning):
    """A daemon is there, and does not answer."""

    code = "daemon_silent"
    http_status = 504
    retryable = True


class StoreLocked(KvswapError):
    """Another process holds this home directory."""

    code = "store_locked"
    usual = ("another kvswap process has it", "kvswap status")
    exit_code = 11


class StoreFull(KvswapError):
    """The quota or the disk has no room; nothing was lost."""

    code = "store_full"
    usual = ("no room is left; nothing was lost", "kvswap gc")
    exit_code = 12
    http_status = 507


class WorkerFailed(KvswapError):
    """The model process died or could not do the job."""

    code = "worker_failed"
    usual = ("a fault in a library, or not enough memory", "kvswap status")
    retryable = True


class LocalFault(KvswapError):
    """This machine refused: a permission, a read-only or failing disk, no memory, no file handles."""

    code = "local"
    usual = ("this machine's system refused it", "kvswap doctor")


class TookTooLong(KvswapError):
    """Something on this machine did not end in its time."""

    code = "took_too_long"
    usual = ("this machine is busy, or something it waits for hangs", "kvswap status")
    http_status = 504
    retryable = True


class Unexpected(KvswapError):
    """A fault of kvswap's own; its traceback is in the log."""

    code = "internal"
    usual = ("kvswap itself, not what was asked of it", "kvswap.log in the home has the traceback")


class Interrupted(KvswapError):
    """Stopped by the user; what was fetched stays and the next run resumes."""

    code = "interrupted"
    usual = ("Ctrl-C, or the caller went away", "the same command resumes")
    exit_code = 130


def _subclasses(kind: type[KvswapError]) -> list[type[KvswapError]]:
    return [kind] + [c for child in kind.__subclasses__() for c in _subclasses(child)]
