"""The number formats of ggml that a cache of llama.cpp may hold, by the numbers that its files have for them."""

from __future__ import annotations

from dataclasses import dataclass

from kvswap.core.errors import Incompatible


@dataclass(frozen=True, slots=True)
class GgmlType:
    """A number format: `block_numbers` numbers take `block_bytes` bytes together."""

    number: int
    name: str
    block_numbers: int
    block_bytes: int

    @property
    def quantised(self) -> bool:
        """True if several numbers share a scale, so that a block is the least that can be moved."""
        return self.block_numbers > 1

    def row_bytes(self, numbers: int) -> int:
        """Return the bytes of a row of so many numbers.  Raises `Incompatible` if they do not fill whole blocks."""
        if numbers <= 0 or numbers % self.block_numbers:
            raise Incompatible(
                f"{numbers} numbers do not fill blocks of {self.block_numbers} of {self.name}", field="dtype"
            )
        return numbers // self.block_numbers * self.block_bytes


F16 = GgmlType(1, "f16", 1, 2)
BF16 = GgmlType(30, "bf16", 1, 2)
Q8_0 = GgmlType(8, "q8_0", 32, 34)
CACHE_TYPES = {kind.number: kind for kind in (F16, BF16, Q8_0)}
"""The formats that are read and written."""

_NAMES = {0: "f32", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 20: "iq4_nl"}


def cache_type(number: int) -> GgmlType:
    """Return the format of this number.  Raises `Incompatible` naming one that is not read."""
    kind = CACHE_TYPES.get(number)
    if kind is None:
        raise Incompatible(
            f"a cache of ggml type {number} ({_NAMES.get(number, 'unknown')}) is not read",
            cause="llama-server runs with another --cache-type-k or --cache-type-v than f16, bf16 or q8_0",
            hint="llama-server --cache-type-k f16 --cache-type-v f16",
            field="dtype",
        )
    return kind
