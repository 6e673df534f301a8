"""One word, one meaning: no old word of docs/glossary.md is used in its old sense, and no two classes have one name.

Identifiers are read from the syntax trees, phrases from strings, docstrings, comments and pages.  What has an old word
for good - on the wire, in JSON, manifests, settings, on disk - is named in KEPT, once each, with the place that maps
it.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "kvswap"
GENERATED = {"sync.py", "base_sync.py"}

# Old word in an identifier -> the word from now on.  A word is a part between underscores or capitals.
WORDS = {
    "beginning": "prefix",
    "beginnings": "prefixes",
    "begun": "prefix",
    "room": "headroom, quota or capacity",
    "rooms": "quotas, packages",
    "roomy": "preallocated",
    "told": "received, sent, reported",
    "tell": "send, notify, report",
    "tells": "sends, reports",
    "teller": "sender",
    "heard": "received",
    "hear": "receive",
    "hearing": "received",
    "hearsay": "address book",
    "spoken": "status queries",
    "bring": "download",
    "bringing": "download",
    "strangers": "untrusted",
    "stranger": "untrusted",
    "inexact": "lossy",
    "ladder": "levels",
    "climb": "run_checks",
    "caught": "banned",
    "distrust": "ban",
    "distrusted": "banned",
    "lied": "sent invalid data",
    "lies": "invalid data",
    "liar": "sender of invalid data",
    "liars": "senders of invalid data",
    "shun": "throttle",
    "shunned": "throttled",
    "doubt": "revalidate",
    "forgive": "retry",
    "forgiven": "excused",
    "grant": "bulk ticket",
    "grants": "bulk tickets",
    "recode": "transcode",
    "recoded": "transcoded",
    "recoding": "transcoding",
    "journal": "usage log",
    "hearts": "token table",
    "heart": "token table",
    "settled": "verified already",
    "catalogues": "prefix indexes",
}

# Exact identifiers whose words are innocent elsewhere.
IDENTIFIERS = {
    "Head": "StatusRecord",
    "SignedHead": "SignedStatusRecord",
    "HeadFiles": "StatusFiles",
    "make_head": "make_status_record",
    "read_head": "read_status_record",
    "hear_heads": "receive_status_records",
    "heads_of": "status_records_of",
    "head_bytes": "status_record_bytes",
    "Behind": "WriteBehind",
    "Names": "Identifiers",
    "OPEN": "PUBLIC",
    "INEXACT": "LOSSY_CODECS",
    "CLAIMS": "EXACTNESS_CLAIMS",
    "Step": "LevelResult",
    "Made": "Ingested",
    "Mark": "SignedFingerprint",
    "Marks": "SaveRequests",
    "Known": "PrefixFilter",
    "_Known": "what it is: a candidate, a decoded layer",
    "Kept": "StoredEnvelope",
    "Turns": "Rotations",
    "Unit": "WorkUnit",
    "Reading": "HostedRequest",
    "Read": "Receipt",
    "SignedRead": "SignedReceipt",
    "OwnCatalogue": "OwnPrefixIndex",
    "GetCatalogue": "GetPrefixIndex",
    "CatalogueReply": "PrefixIndexReply",
    "catalogue_root": "artifacts_root",
    "plan_runs": "plan_layer_groups",
    "by_run": "by_layer_group",
    "exact": "lossless",
    "wish_of": "request_option",
    "Door": "StreamLimit",
    "attend": "maintain",
    "settle": "verify_untrusted, initialize_kernels, record or flush",
}

# Names that stay: file -> names, and why.  Each is mapped to the new word where it is defined, and nowhere else.
KEPT = {
    "kvswap/exchange/node/counters.py": ({"publishers_caught"}, "a counter of `status --json` and of the metrics"),
    "kvswap/exchange/verification/audits.py": ({"publishers_caught"}, "the counter"),
    "kvswap/net/messages.py": ({"grant"}, "a field of FindReply and JoinReply"),
    "kvswap/exchange/discovery/lookup.py": ({"grant"}, "the field of FindReply"),
    "kvswap/exchange/transfer/sources.py": ({"grant"}, "the field of JoinReply"),
    "kvswap/store/ledger.py": ({"lies", "lied_at"}, "columns of peers.sqlite3"),
    "kvswap/daemon/origins_api.py": ({"lies"}, "the column of the ledger"),
    "kvswap/daemon/peers_api.py": ({"lies"}, "the JSON field of `peers`"),
    "kvswap/net/libp2p/connection_limits.py": ({"cancelled_caught"}, "trio's"),
}

# Phrases, as people read them, in their old sense.
PHRASES = {
    r"\bstrangers?\b(?!`)": "untrusted publisher, unknown peer",
    r"\binexact\b(?!`)": "lossy",
    r"\bINEXACT\b": "LOSSY",
    r"\b(?:head records?|heads and audits)\b": "status record",
    r"\bladder of\b|\bof the ladder\b": "verification levels",
    r"\bliars?\b": "who sent invalid data",
    r"\bshunned\b(?!\")": "throttled",
    r"\bby heart\b": "token table",
    r"\bbulk planes?\b|\bboth planes\b": "bulk channel, both channels",
    r"\b(?:shared|published|fetched|longest|common) beginnings?\b|\ba beginning (?:is|of a published)\b": "prefix",
    r"\bhearsay\b": "referrals",
    r"\btellers?\b(?! TEXT)": "sender",
    r"\bwas caught\b|\bwere caught\b|\bCAUGHT\b": "banned",
    r"\bdistrust(?:s|ed)? (?:a|the|its) publisher": "ban",
    r"\bgo(?:es)? up the ladder\b": "run the checks",
    r"--strangers|--inexact": "--allow-untrusted, --allow-lossy",
    r"\bthe rooms\b": "the packages",
    r"\brun of layers\b|\bruns of (?:their |its )?layers\b": "layer group",
}
# Where a phrase stands for what it names.
QUOTED = {
    "kvswap/client/old.py",  # old names
    "kvswap/cli/objective.py",  # old flags
    "docs/glossary.md",
    "docs/cli.md",  # made from the help
}
TABLES = {"peers shunned", "strangers", "inexact"}  # names in `status --json`, and fields of `Terms` in JSON
SQL = re.compile(r"\bteller\b")  # a column of trust.sqlite3


def sources(*folders: str) -> Iterator[Path]:
    """Yield the Python files of folders, but those that are made of others."""
    for folder in folders:
        yield from (path for path in sorted((ROOT / folder).rglob("*.py")) if path.name not in GENERATED)


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield each name that is defined or used, with its line."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, line
        elif isinstance(node, ast.Name):
            yield node.id, line
        elif isinstance(node, ast.Attribute):
            yield node.attr, line
        elif isinstance(node, ast.arg | ast.keyword) and node.arg is not None:
            yield node.arg, line
        elif isinstance(node, ast.alias):
            yield from ((part, line) for part in (node.asname or node.name).split("."))


def old_identifiers(text: str, kept: set[str]) -> list[str]:
    """List the old words among the names of a file, with their lines and what they are called now."""
    found = []
    for name, line in identifiers(ast.parse(text)):
        parts = [part.lower() for part in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]
        new = IDENTIFIERS.get(name) or next((WORDS[part] for part in parts if part in WORDS), None)
        if new is not None and name not in kept:
            found.append(f"{line}: {name} -> {new}")
    return found


def old_phrases(text: str) -> list[str]:
    """List the old phrases of a text."""
    return [f"{found[0]} -> {new}" for pattern, new in PHRASES.items() for found in re.finditer(pattern, text)]


def texts(source: str) -> Iterator[tuple[str, int]]:
    """Yield the strings and comments of a Python file, with their lines."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            yield token.string, token.start[0]


def test_no_identifier_has_an_old_word() -> None:
    wrong = []
    for path in sources("kvswap", "examples", "benchmarks"):
        name = str(path.relative_to(ROOT))
        kept, _ = KEPT.get(name, (set(), ""))
        wrong += [f"{name}:{found}" for found in old_identifiers(path.read_text(), kept)]
        wrong += [f"{name}: the module" for part in path.stem.split("_") if part in WORDS]
    assert not wrong, "\n".join(wrong)


def test_no_text_has_an_old_phrase() -> None:
    wrong = []
    for path in sources("kvswap", "examples", "benchmarks", "docs/tools"):
        name = str(path.relative_to(ROOT))
        if name not in QUOTED:
            for text, line in texts(path.read_text()):
                if not SQL.search(text) and text.strip("\"'") not in TABLES:
                    wrong += [f"{name}:{line}: {found}" for found in old_phrases(text)]
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "tutorials").glob("*.md")]
    for page in [*pages, ROOT / "tests" / "README.md", ROOT / "manifests" / "FORMAT.md"]:
        if str(page.relative_to(ROOT)) not in QUOTED and page.name != "CHANGELOG.md":
            wrong += [f"{page.relative_to(ROOT)}: {found}" for found in old_phrases(page.read_text())]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("part", sorted(WORDS))
def test_an_old_word_is_found(part: str) -> None:
    for planted in (f"def {part}_of(x): ...", f"class {part.title()}: ...", f"x.{part} = 1", f"f({part}=1)"):
        assert old_identifiers(planted, set()), planted
    assert not old_identifiers(f"x.{part} = 1", {part}) and not old_identifiers(f"x{part}x = 1", set())


@pytest.mark.parametrize("name", sorted(IDENTIFIERS))
def test_an_old_name_is_found(name: str) -> None:
    assert old_identifiers(f"from m import {name}", set()) and old_identifiers(f"a.{name}", set())


@pytest.mark.parametrize(
    "planted",
    ["a stranger's artifact", "an inexact codec", "its head record", "a ladder of steps", "a liar", "known by heart",
     "over the bulk plane", "a shared beginning", "who was caught", "--strangers", "so many tellers", "a run of layers"],
)  # fmt: skip
def test_an_old_phrase_is_found(planted: str) -> None:
    assert old_phrases(planted)


def test_what_is_kept_is_still_there() -> None:
    """A name that is exempt and gone leaves the list, so that it cannot come back."""
    for name, (kept, why) in KEPT.items():
        path = ROOT / name
        assert path.exists() and why, name
        used = {identifier for identifier, _ in identifiers(ast.parse(path.read_text()))}
        assert kept <= used | set(re.findall(r"\w+", path.read_text())), (name, kept - used)


# -- one name, one class ---------------------------------------------------------------------------------------------

# Classes of one name, and why: where two modules implement one interface, and one is chosen.
TWICE = {
    "Encoder": "codec.predictive.fast and .plain are one interface, in C and in numpy",
    "Decoder": "codec.predictive.fast and .plain are one interface, in C and in numpy",
}


def classes(*paths: Path) -> dict[str, list[str]]:
    """Return the files of each class name, without the leading underscore."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found[node.name.lstrip("_")].append(path.name)
    return found


def test_one_name_is_one_class() -> None:
    twice = {name: files for name, files in classes(*sources("kvswap")).items() if len(files) > 1}
    assert twice.keys() == TWICE.keys(), {name: files for name, files in twice.items() if name not in TWICE}


def test_two_classes_of_one_name_are_found(tmp_path: Path) -> None:
    for name, text in (("a", "class One: ..."), ("b", "class _One: ..."), ("c", "class Two: ...")):
        (tmp_path / f"{name}.py").write_text(text)
    assert classes(*sorted(tmp_path.glob("*.py")))["One"] == ["a.py", "b.py"]


def test_no_module_of_the_command_line_ends_with_an_underscore() -> None:
    assert not [path.name for path in (PACKAGE / "cli").rglob("*.py") if path.stem.strip("_") and path.stem[-1] == "_"
                and path.stem != "__init__"]  # fmt: skip
    assert not list(PACKAGE.rglob("engine.py")) or all(
        "Transfer" not in path.read_text() for path in PACKAGE.rglob("engine.py")
    )
