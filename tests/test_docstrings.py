"""Public docstrings are sentences that can be read alone, in `help()` or in an editor.

ruff's D rules see form and mood (`[tool.ruff.lint]`); this sees how a docstring begins.  A folder that ruff still
passes over for D in pyproject.toml is passed over here as well: one list.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What only goes on from something that was said before, or leaves out of what it speaks.
FRAGMENTS = """
Of For From As By To With Without In Into On Onto At Through Around Under Over Up Out After Before Between Among
Within Against During Upon Beside Beyond Behind Above Below Toward Towards
What Who Whom Whose Whether Where When While How Which Why That Because Since Until Unless If So Like Than Though
The-same One-of Same Such This These Those It Its They Their Them He She His Her Here There Then Thus Now
All Any Each Every Both Neither Either Some Several Many Most More Few Nothing Nobody Nowhere Everything Everybody
Something Somebody Someone Anything Anybody Another Other Others None No Not Nor Never Always Only Also Again And
But Or Else Yet Still Even Just Once Twice
Is Are Was Were Be Been Being Has Have Had Does Did Can Could May Might Must Shall Should Will Would
Called Checked Kept Issued Given Made Done Taken Told Said Seen Heard Sorted Bounded Measured Registered Idempotent
"""

# A function says what it does, in the imperative.  (A new verb is added here.)
VERBS = """
De-quantise Gossip Redirect Say
Abandon Abort Accept Account Acquire Act Add Adjust Admit Advance Align Allocate Allow Announce Answer Append
Apply Arrange Ask Assemble Assert Assign Attach Audit Authenticate Await Ban Bind Block Blind Book Bound Bring Build
Bump Buy Cache Calculate Calibrate Call Cancel Cap Capture Cast Change Charge Check Choose Clamp Classify Clean
Clear Click Clone Close Collect Combine Come Compare Compile Complete Compose Compress Compute Confirm Connect
Consider Construct Consume Continue Convert Copy Correct Count Cover Create Cross Cut Deal Debit Decide Declare
Decode Decompress Decrypt Deduce Define Delay Delete Deliver Demand Derive Describe Destroy Detach Detect Determine
Dial Digest Disable Discard Disconnect Discover Dispatch Display Distribute Distrust Divide Do Download Draw Drain
Drop Dump Emit Empty Enable Encode Encrypt End Enforce Enqueue Ensure Enter Enumerate Erase Escape Establish
Estimate Evaluate Evict Examine Exchange Exclude Execute Exit Expand Expect Expire Explain Export Expose Extend
Extract Fail Feed Fetch Fill Filter Find Finish Fit Fix Flag Flatten Flush Fold Follow Forbid Force Forget Format
Forward Free Freeze Gather Generate Get Give Go Grant Group Grow Guard Guess Halt Hand Handle Hash Hide Hold Host
Identify Ignore Implement Import Include Increase Increment Index Infer Inform Initialise Inject Insert Inspect
Install Interleave Interpolate Interpret Interrupt Introduce Invalidate Invert Invite Invoke Issue Iterate Join
Judge Keep Kill Label Launch Lay Learn Lease Leave Let Lift Limit Link List Listen Load Locate Lock Log Look Lower Make
Manage Map Mark Match Measure Meet Merge Move Multiply Name Narrow Negotiate Normalise Note Notice Notify Obtain
Offer Open Order Overwrite Pack Pad Parse Partition Pass Pause Perform Permit Permute Persist Pick Pin Place Plan
Poll Pool Pop Post Predict Prefer Prefill Prepare Present Prevent Price Print Probe Process Produce Project Promise
Propagate Prove Provide Prune Publish Pull Punish Push Put Quantise Quarantine Query Queue Quote Raise Range Rank
Rate Reach Read Rebuild Recall Receive Recode Recognise Recompute Reconnect Record Recover Redial Reduce Refer
Refill Refresh Refuse Register Reject Release Relay Reload Remember Remove Rename Render Renew Reorder Repair Repeat
Replace Reply Report Represent Request Require Reserve Reset Resize Resolve Respond Restart Restore Restrict Resume
Retire Retrieve Retry Return Reuse Reverse Revoke Rewrite Rotate Round Route Run Sample Satisfy Save Scale Scan
Schedule Score Seal Search See Seek Select Send Separate Serialise Serve Set Settle Shape Share Shift Show Shrink
Shut Shuffle Sign Skip Sleep Slice Snapshot Solve Sort Spawn Specify Spend Split Spread Stack Start Stay Steer Step
Stop Store Stream Strip Submit Subscribe Subtract Sum Summarise Supply Suppress Suspend Swap Switch Sync Take Tally
Tell Terminate Test Throttle Throw Time Toggle Tokenise Touch Trace Track Train Transcode Transfer Transform
Translate Transpose Treat Trim Trust Try Tune Turn Unblock Undo Unlist Unlock Unpack Unpin Unquantise Unseal
Unsubscribe Update Upgrade Upload Use Validate Verify View Vote Wait Wake Walk Warm Warn Watch Weigh Widen Withdraw Wrap
Write Yield
"""

# A class or a property says what it is; these are verbs alone, in either form.
ACTS = """
Accept Ask Be Become Begin Bring Choose Compute Decide Decode Encode Fetch Find Forget Get Give Go Hear Hold Imply Keep
Know Let Listen Make Provide Put Raise Remember Return Say See Send Serve Take Tell Use Verify Write
"""

fragments, verbs = set(FRAGMENTS.split()), set(VERBS.split())
acts = {form for verb in ACTS.split() for form in (verb, verb + "s")}

Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def is_property(node: Documented) -> bool:
    return any("property" in ast.unparse(decorator) for decorator in node.decorator_list)


def fault(node: Documented) -> str | None:
    """What is wrong with how the docstring of a class, function or property begins."""
    text = ast.get_docstring(node) or ""
    words = text.split()
    if not words:
        return None  # ruff asks for it where it has to be
    first = re.sub(r"[^\w'-].*", "", words[0])
    if not re.match(r"[A-Z0-9]", first):
        return "does not begin with a word"
    if first in fragments or "-".join(words[:2]) in fragments:
        return "begins in the middle of a sentence"
    if words[0][-1] in ".:;" or (words[0][-1] == "," and first not in verbs):
        return "begins with a single word"
    if isinstance(node, ast.ClassDef) or is_property(node):
        return "begins with a verb" if first in acts else None
    return None if first in verbs else "does not begin with a verb"


def public(node: ast.AST, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Documented]]:
    """Classes and functions that have no underscore in front, with their names; not those within functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Documented):
            if child.name.startswith("_"):
                continue
            name = (*path, child.name)
            yield ".".join(name), child
            if isinstance(child, ast.ClassDef):
                yield from public(child, name)
        elif isinstance(child, ast.If | ast.Try):
            yield from public(child, path)


def unfinished() -> list[str]:
    """Patterns of files that are passed over, as in pyproject.toml."""
    lint = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["lint"]
    return [name for name, rules in lint["per-file-ignores"].items() if "D" in rules]


def test_public_docstrings_stand_alone() -> None:
    passed_over, faults, seen = unfinished(), [], 0
    for file in sorted((ROOT / "kvswap").rglob("*.py")):
        where = str(file.relative_to(ROOT))
        if any(fnmatch(where, pattern) for pattern in passed_over):
            continue
        for name, node in public(ast.parse(file.read_text())):
            seen += 1
            if (why := fault(node)) is not None:
                faults.append(f"{where}:{node.lineno} {name} {why}: {(ast.get_docstring(node) or '').splitlines()[0]}")
    assert seen, "no file was looked at"
    assert not faults, "\n".join(["docstrings that do not stand alone:", *faults])


@pytest.mark.parametrize(
    "code",
    [
        "def f():\n '''Of who was given the key of the one artifact that is to be read.'''",
        "def f():\n '''The same of these own artifacts.'''",
        "def f():\n '''One of them.'''",
        "def f():\n '''`own` is made from the tensors that were supplied.'''",
        "def f():\n '''(signer, payload), the signature checked.'''",
        "def f():\n '''The envelope.'''",
        "def f():\n '''Seconds until it is there.'''",
        "def f():\n '''Checked.  Raises `MalformedManifest`.'''",
        "async def f():\n '''Whether it was withdrawn.'''",
        "class C:\n '''With its envelope.'''",
        "class C:\n '''Holds the keys.'''",
        "class C:\n @property\n def f(self):\n  '''Return how many agree.'''",
        "class C:\n @property\n def f(self):\n  '''Why, by the ids of what was withdrawn.'''",
        "class C:\n @classmethod\n def f(cls):\n  '''From dollars a million tokens.'''",
    ],
)
def test_a_fragment_is_found(code: str) -> None:
    assert any(fault(node) for _, node in public(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "def f():\n '''Return the signer and the payload of an envelope.'''",
        "async def f():\n '''Fetch the prefix index of one peer.'''",
        "def f(): pass",
        "class C:\n '''A group of readers.'''",
        "class C:\n '''32-byte digest of a chunk.'''",
        "class C:\n @property\n def f(self):\n  '''The layer with the largest error.'''",
        "class C:\n @cached_property\n def f(self):\n  '''True if the list is full.'''",
        "def _f():\n '''One of them.'''",
    ],
)
def test_a_sentence_passes(code: str) -> None:
    assert not any(fault(node) for _, node in public(ast.parse(code)))
