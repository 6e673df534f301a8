from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvswap.core import wire
from kvswap.core.errors import IntegrityError, NotAMember, NotFound, UsageError
from kvswap.core.limits import LIMITS
from kvswap.trust import Group, Groups, one_key, read_statement
from kvswap.trust.groups import PUBLIC, keys_of
from tests.support import group, key, make_artifact, seal_for

MADE = make_artifact(tokens=40)
SEALED = seal_for(MADE, group())


def test_members_read_what_was_published_and_others_do_not() -> None:
    statement = read_statement(SEALED.statement.envelope, keys_of([group("other", 2), group()]))
    assert statement.manifest == SEALED.manifest and statement.identifiers == group()
    assert statement.manifest.tensors == MADE.manifest.tensors
    for keys in (keys_of([]), keys_of([group("other", 2)]), one_key(None)):
        with pytest.raises(NotAMember, match="sealed") as caught:
            read_statement(SEALED.statement.envelope, keys)
        assert caught.value.exit_code == 4
    assert read_statement(SEALED.statement.envelope, one_key(SEALED.statement.key)).manifest == SEALED.manifest
    with pytest.raises(IntegrityError):
        read_statement(SEALED.statement.envelope, one_key(bytes(32)))


def test_what_others_see_says_nothing_of_the_document() -> None:
    manifest = MADE.manifest
    assert manifest.document is not None
    seen = SEALED.statement.envelope + b"".join(SEALED.chunks.values())
    told = [manifest.model.weights, manifest.model.digest, manifest.document.sha256, manifest.prefix.token_digest]
    told += [*manifest.prefix.chain, *(ref.raw for ref in manifest.chunks), *(d[0] for d in manifest.tensors)]
    told += [manifest.model.label.encode(), b"bfloat16", b"text/plain", *MADE.chunks.values()]
    for secret in told:
        assert (
            secret in wire.pack(wire.plain(manifest))
            or secret in MADE.chunks.values()
            or secret in (manifest.model.digest,)
        )
        assert secret not in seen


def test_the_same_document_twice_has_nothing_in_common() -> None:
    again = seal_for(MADE, group())
    assert not set(again.chunks) & set(SEALED.chunks)
    assert again.id != SEALED.id


def test_members_agree_on_names_that_others_cannot_compute() -> None:
    ours, here, theirs = group("ours"), group("what we call it"), group("ours", 2)
    reference, chain, model = "sha256:" + "ab" * 32, [bytes(32), b"\1" * 32], b"\2" * 32
    assert ours.document(reference) == here.document(reference) != theirs.document(reference)
    assert ours.chain(chain) == here.chain(chain) and len(set(ours.chain(chain))) == 2
    assert ours.model(model, "bfloat16") == here.model(model, "bfloat16") != ours.model(model, "float32")
    assert not set(ours.chain(chain)) & set(theirs.chain(chain))
    assert (PUBLIC.document(reference), PUBLIC.chain(chain), PUBLIC.model(model, "x")) == (
        reference,
        chain,
        (model, "x"),
    )
    parts = {ours.document(reference)[7:], *(d.hex() for d in ours.chain([bytes.fromhex("ab" * 32)]))}
    assert len(parts) == 2  # the same bytes as a document and as a beginning have two names


def test_derived_keys_are_pinned() -> None:
    """These are of the format: another value would lock every member out."""
    made = group()
    salt = bytes(range(32))
    assert made.seal(salt).key.hex() == PINNED["key"]
    assert made.tag(salt).hex() == PINNED["mark"]
    assert made.document("sha256:" + "00" * 32) == "sha256:" + PINNED["document"]
    assert made.chain([bytes(32)])[0].hex() == PINNED["chain"]
    assert made.model(bytes(32), "bfloat16")[0].hex() == PINNED["model"]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_a_text_is_a_key_or_a_usage_error_that_does_not_repeat_it(text: str) -> None:
    try:
        assert Group.from_text(text).to_text() == " ".join(text.split())
    except UsageError as error:
        assert len(text) < 20 or text not in error.message


def test_groups_are_kept_in_private_files(tmp_path: Path) -> None:
    groups = Groups(tmp_path / "groups")
    made = groups.new("team")
    path = tmp_path / "groups" / "team.group"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert Groups(tmp_path / "groups").all() == [made]
    assert groups.add(Group.from_text(made.to_text())) == made  # again: nothing new
    with pytest.raises(UsageError, match="another"):
        groups.new("team")
    assert made.key.hex() not in repr(groups.rows()) + repr(made)
    path.chmod(0o644)
    with pytest.raises(UsageError, match="mode 644"):
        Groups(tmp_path / "groups")
    path.chmod(0o600)
    groups.remove("team")
    assert Groups(tmp_path / "groups").all() == [] and not path.exists()
    with pytest.raises(NotFound):
        groups.get("team")


@pytest.mark.parametrize("name", ["", ".", "../escape", "a/b", "-x", "x" * 65, "a b", "ü"])
def test_names_that_are_no_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        Groups(tmp_path / "groups").new(name)
    with pytest.raises(UsageError):
        Group.from_text(f"kvswap-group-1 {name} {'0' * 64}")
    assert not (tmp_path / "groups").exists()


def test_a_node_is_in_a_bounded_number_of_groups(tmp_path: Path) -> None:
    groups = Groups(tmp_path / "groups")
    for number in range(LIMITS.groups):
        groups.add(group(f"g{number}", number))
    with pytest.raises(UsageError, match="at most"):
        groups.new("one-more")


def test_a_member_cannot_pass_on_another_members_artifact_as_its_own() -> None:
    stolen = seal_for(MADE, group(), signer=key(9))  # the manifest inside names key 1
    with pytest.raises(IntegrityError, match="publisher"):
        read_statement(stolen.statement.envelope, keys_of([group()]))


PINNED = {
    "key": "bfb47a0813e918fc22b7ca18b5df65e6e7d3bee24732ae0fa9e25768705eaec9",
    "mark": "0aeb59857dfa0ab6927f353240ffc11f",
    "document": "f33ff955ad2ef93a3e55d87be4d22543f159a9201fe06e8a1dbf9557713d7924",
    "chain": "8d6e45914675a6546598d26eaae2bdf4c36f0ff6d29febf698135127fbf4ebc1",
    "model": "5961d88e2ed5d4effa76d2ecac36abb4e144ac04ffded137a04934f786297072",
}
