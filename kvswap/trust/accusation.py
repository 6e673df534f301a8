"""The rule that decides when a difference proves that a publisher signed invalid data.

One reader sees a difference between an artifact and the model.  It condemns the publisher only where a third party that
has the signed bytes, the model and the text would see it as well, because nothing on the reader's side can explain it:
`Grounds` lists the conditions.  Where one of them does not hold the check counts as one that could not be done, with
the reason, and an untrusted publisher's artifact is not used (`unusable`), so that nothing a publisher claims turns a
check off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from kvswap.core.errors import IntegrityError
from kvswap.trust.levels import Level, LevelReport, LevelResult, due

if TYPE_CHECKING:
    from kvswap.artifact.manifest import Manifest, Numerics

PROVES = (Level.STRUCTURE, Level.TOKENS, Level.SAMPLES, Level.AGREEMENT, Level.RECOMPUTE)
_OPEN = "was not looked at"
_ENVIRONMENT = ("schedule", "attention", "compute_dtype", "torch", "transformers", "device", "isa")


@dataclass(frozen=True, slots=True)
class Grounds:
    """The conditions of an accusation: for each the reason why it does not hold, or an empty text where it holds.

    `text`: the tokens are those that the manifest signs, or the text has the SHA-256 digest that it signs. `weights`:
    the weights in the reader's memory are those of the model identity that the manifest names. `numerics`: both
    computed in one class of environment. `rules`: both tokenised by the rules of the model's files, without a template.
    `source`: the values were read again from the signed bytes, for this check, after it failed once. `control`: the
    reader's own cache of the same tokens, computed in another way, passes the check.
    """

    text: str = "whether the text is the document's " + _OPEN
    weights: str = "whether the model in memory is the one that is named " + _OPEN
    numerics: str = "whether both compute in the same way " + _OPEN
    rules: str = "whether both make tokens by the same rules " + _OPEN
    source: str = "the signed bytes were not read again"
    control: str = "whether this reader's own cache passes " + _OPEN

    @property
    def lacking(self) -> tuple[str, ...]:
        """The reasons why nobody can be accused; empty where the difference is a proof."""
        return tuple(why for field in fields(self) if (why := getattr(self, field.name)))


def judge(result: LevelResult, grounds: Grounds) -> LevelResult:
    """Return a failed check as a proof, or as skipped with the reason where nobody can be accused; others unchanged.

    A structure (V2) that is wrong stays failed, whoever is to blame: such a cache is of no use.
    """
    if result.verdict != "failed" or result.level not in PROVES:
        return result
    lacking = grounds.lacking
    if not lacking:
        return replace(result, proven=True)
    if result.level == Level.STRUCTURE:
        return result
    return replace(result, verdict="skipped", why=f"{result.why}; but nobody is to blame for it: {'; '.join(lacking)}")


def proof(result: LevelResult, cause: str) -> IntegrityError:
    """Return a failed check as the error that carries it from the model process to the node."""
    return IntegrityError(result.why, cause=cause, step=f"V{int(result.level)}", proven=result.proven)


def of_error(error: IntegrityError) -> LevelResult | None:
    """Return the check that an error carries from the model process, or None: the inverse of `proof`."""
    name = error.details.get("step")
    if name not in {f"V{int(level)}" for level in PROVES}:
        return None
    return LevelResult(Level(int(name[1:])), "failed", why=error.message, proven=error.details.get("proven") is True)


def accuses(result: LevelResult) -> bool:
    """Return True if this check proves that the publisher signed something other than what the model computes."""
    return result.verdict == "failed" and result.proven and result.level in PROVES


def comparable(theirs: Numerics, ours: Numerics, names: Sequence[str] = _ENVIRONMENT) -> str:
    """Name the fields in which two environments differ, as a reason; empty where they are of one class.

    Machines of one class compute equal bits on the same schedule, up to what the number of threads changes, which the
    honest noise covers.  Between classes it is not known how far apart honest caches are.
    """
    other = [name for name in names if getattr(theirs, name) != getattr(ours, name)]
    if not other:
        return ""
    differences = ", ".join(f"{name} {getattr(theirs, name)[:80]!r}" for name in other)
    return f"it says that it was computed with {differences}, which is not what this reader computes with"


def claims(manifest: Manifest) -> dict[str, str]:
    """List what a manifest says of itself that keeps readers from checking it, as reasons by field."""
    out = {}
    if not manifest.lossless:
        out["divergence"] = f"it is lossy ({', '.join(manifest.codecs)}) by its publisher's own word"
    if manifest.document is None:
        out["document"] = "it does not say which document it is of"
    if not manifest.prefix.special_tokens:
        out["prefix.special_tokens"] = "its tokens were made without the special tokens of the model"
    if manifest.prefix.template is not None:
        out["prefix.template"] = "its tokens were made by rules of its own"
    if all(layer.kind == "state" for layer in manifest.layout.layers):
        out["layout"] = "its layers keep nothing of single tokens that could be compared with those of the text"
    if not manifest.probe.tokens:
        out["probe"] = "it has no probe, as its publisher had no model to make one with"
    return out


def uncheckable(manifest: Manifest) -> dict[str, str]:
    """List the claims because of which an untrusted publisher's artifact is refused before it is fetched, by field.

    Two of `claims` are no obstacle, as no check that is due needs what they lack: without the document's name the
    tokens can be compared with those of a text at hand (V3), and the probe (V4) is never security.
    """
    return {where: why for where, why in claims(manifest).items() if where not in ("document", "probe")}


def unusable(manifest: Manifest, report: LevelReport) -> dict[str, str]:
    """List why an untrusted publisher's artifact may not be used, as reasons by check or field; empty where it may be.

    Every check that is due has to have passed, and the manifest may claim nothing that keeps it from being checked.
    Where the manifest names no document the tokens decide: V3 compares them with those of the text at hand.
    """
    unchecked = report.unchecked
    lacking = [level for level in report.lacking(due(listed=False)) if level != Level.POLICY]
    reasons = {f"V{int(level)}": unchecked.get(f"V{int(level)}", "") for level in lacking}
    return reasons | uncheckable(manifest)
