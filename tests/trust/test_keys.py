from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from kvswap.core.errors import IntegrityError, UsageError
from kvswap.trust import Key, check_signature, load_or_create
from kvswap.trust.keys import is_small_order
from tests.support import key

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P


def add(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    """Affine addition on Ed25519's curve (RFC 8032, section 5.1.4, in its slowest form)."""
    (x1, y1), (x2, y2) = a, b
    t = D * x1 * x2 * y1 * y2 % P
    return (
        (x1 * y2 + x2 * y1) * pow(1 + t, -1, P) % P,
        (y1 * y2 + x1 * x2) * pow(1 - t, -1, P) % P,
    )


def small_order_encodings() -> set[bytes]:
    """All eight points of the torsion subgroup, computed, in every encoding that fits 255 bits."""
    out: set[bytes] = set()
    for y in range(2, 2000):  # find a point, clear its large-order part, walk the subgroup
        x2 = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
        x = pow(x2, (P + 3) // 8, P)
        if x * x % P != x2:
            x = x * pow(2, (P - 1) // 4, P) % P
        if x * x % P != x2:
            continue
        order = 2**252 + 27742317777372353535851937790883648493
        point, acc, n = (x, y), (0, 1), order
        while n:
            if n & 1:
                acc = add(acc, point)
            point, n = add(point, point), n >> 1
        walk, members = acc, []
        for _ in range(8):
            members.append(walk)
            walk = add(walk, acc)
        if len(set(members)) == 8:
            for mx, my in members:
                for value in (my, my + P):
                    if value < 2**255:
                        for sign in (mx & 1, 1 - (mx & 1)) if mx == 0 else (mx & 1,):
                            out.add((value | sign << 255).to_bytes(32, "little"))
            return out
    raise AssertionError("no point found")


def test_small_order_keys_are_refused() -> None:
    encodings = small_order_encodings()
    assert len(encodings) >= 8
    assert all(is_small_order(e) for e in encodings)
    assert not any(is_small_order(key(n).peer_id.public_key) for n in range(50))


def test_the_forgery_that_small_order_keys_allow_is_stopped() -> None:
    identity_point = (1).to_bytes(32, "little")
    forged = identity_point + bytes(32)
    Ed25519PublicKey.from_public_bytes(identity_point).verify(forged, b"any message")  # the library accepts it
    with pytest.raises(IntegrityError):
        check_signature(identity_point, forged, b"any message")


def test_signatures_bind_key_and_message() -> None:
    signer = key(1)
    signature = signer.sign(b"m")
    check_signature(signer.peer_id.public_key, signature, b"m")
    for bad in (
        (key(2).peer_id.public_key, signature, b"m"),
        (signer.peer_id.public_key, signature, b"n"),
        (signer.peer_id.public_key, signature[:-1], b"m"),
        (signer.peer_id.public_key, bytes([signature[0] ^ 1]) + signature[1:], b"m"),
    ):
        with pytest.raises(IntegrityError):
            check_signature(*bad)


def test_key_files_are_private_and_stay_the_same(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    first = load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_create(path).seed == first.seed
    path.chmod(0o644)
    with pytest.raises(UsageError, match="others may read"):
        load_or_create(path)
    path.chmod(0o600)
    path.write_text("not a key")
    with pytest.raises(UsageError):
        load_or_create(path)


def test_generated_keys_differ() -> None:
    assert Key.generate().seed != Key.generate().seed
