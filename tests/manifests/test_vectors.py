"""Every golden vector is judged rightly: in process, and by the command line with its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import jsonschema
import pytest

from kvswap.artifact import assembly, tensors
from kvswap.cli.main import main
from kvswap.core.errors import KvswapError
from kvswap.trust import Group, Statement, verify_envelope
from kvswap.trust.groups import keys_of
from tests.support import ROOT

VECTORS = ROOT / "manifests" / "vectors"
INDEX: list[dict[str, Any]] = json.loads((VECTORS / "index.json").read_text())
IDS = [entry["file"] for entry in INDEX]


def judged(entry: dict[str, Any]) -> Statement:
    groups = [Group.from_text((VECTORS / entry["group"]).read_text())] if "group" in entry else []
    return verify_envelope((VECTORS / entry["file"]).read_bytes(), entry["at"], keys_of(groups))


def test_there_are_enough_of_them_and_all_are_listed() -> None:
    files = {str(p.relative_to(VECTORS)) for p in VECTORS.rglob("*.kvm")}
    assert files == set(IDS)
    assert sum(i.startswith("valid/") for i in IDS) >= 12
    assert sum(i.startswith("hostile/") for i in IDS) >= 30


@pytest.mark.parametrize("entry", INDEX, ids=IDS)
def test_each_is_judged_rightly_by_the_command_line(entry: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["manifest", "check", str(VECTORS / entry["file"]), "--at", str(entry["at"]), "--json"]
    if "chunks" in entry:
        arguments += ["--chunks", str(VECTORS / entry["chunks"])]
    if "group" in entry:
        arguments += ["--group", str(VECTORS / entry["group"])]
    code = main(arguments)
    out = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert code == entry["exit"], (entry["why"], out)
    if entry["exit"] == 0 and "kind" not in entry:
        jsonschema.validate(out["manifest"], json.loads((ROOT / "manifests" / "manifest.schema.json").read_text()))
    elif entry["exit"]:
        assert out["error"]["message"]
    else:
        assert out["valid"] and entry["kind"] in out


def test_the_command_itself_returns_the_exit_codes() -> None:
    for name, code in (
        ("valid/sliding", 0),
        ("hostile/expired", 4),
        ("hostile/signature-bit", 6),
        ("hostile/dtype", 7),
    ):
        entry = next(e for e in INDEX if e["file"] == f"{name}.kvm")
        arguments = ["manifest", "check", str(VECTORS / entry["file"]), "--at", str(entry["at"])]
        done = subprocess.run([sys.executable, "-m", "kvswap", *arguments], capture_output=True, text=True)
        assert done.returncode == code, done.stderr


@pytest.mark.parametrize(
    "entry",
    [e for e in INDEX if e["exit"] == 0 and "kind" not in e],
    ids=[e["file"] for e in INDEX if e["exit"] == 0 and "kind" not in e],
)
def test_valid_ones_are_stable(entry: dict[str, Any]) -> None:
    """Re-encoding a parsed payload gives the signed bytes: the writer has not drifted from the format."""
    statement = judged(entry)
    if not statement.manifest.extensions:
        from kvswap.artifact import dsse, sealing

        signed = statement.manifest.encode()
        if statement.seal is not None:
            sealed = sealing.Sealed.parse(dsse.open_envelope(statement.envelope, sealing.KIND).payload)
            assert statement.seal.close(sealing.MANIFEST, signed) == sealed.body
        else:
            assert dsse.open_envelope(statement.envelope).payload == signed
    if "chunks" in entry:
        loaded = assembly.load(
            statement.manifest,
            lambda cid: (VECTORS / entry["chunks"] / str(cid)).read_bytes(),
            seal=statement.seal,
        )
        tensors.verify_tensors(statement.manifest, loaded)


def test_no_hostile_one_gets_past_the_reader() -> None:
    for entry in INDEX:
        if entry["exit"] != 0 and "chunks" not in entry:
            with pytest.raises(KvswapError):
                judged(entry)
