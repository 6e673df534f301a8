"""kvswap and llama.cpp: what it saves of a conversation is parsed, checked, cut, written, published and fetched.

`state` has the typed values, `reading` parses and `writing` writes them, `building` cuts them and makes them of keys
and values.  No part of llama.cpp is imported: a llama-server of any origin may run beside.
"""

from kvswap.integrations.llamacpp.building import (
    CacheShape,
    LayerRows,
    StateShape,
    build,
    cut,
    layer_rows,
    refit,
    shape_of,
)
from kvswap.integrations.llamacpp.reading import parse_slot_file, parse_state
from kvswap.integrations.llamacpp.state import CellCache, CellTensor, SequenceState, SlidingCheckpoint, SlotFile
from kvswap.integrations.llamacpp.writing import save_slot_file, slot_file_pieces, write_slot_file, write_state

__all__ = [
    "CacheShape",
    "CellCache",
    "CellTensor",
    "LayerRows",
    "SequenceState",
    "SlidingCheckpoint",
    "SlotFile",
    "StateShape",
    "build",
    "cut",
    "layer_rows",
    "parse_slot_file",
    "parse_state",
    "refit",
    "save_slot_file",
    "shape_of",
    "slot_file_pieces",
    "write_slot_file",
    "write_state",
]
