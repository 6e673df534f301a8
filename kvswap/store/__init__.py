"""The store of a node: chunk files by digest, and an index that never lists a wrong one.

>>> import tempfile, pathlib
>>> store = Store.open(pathlib.Path(tempfile.mkdtemp()))
>>> cid = store.put_chunk(b"some encoded keys and values")
>>> store.get_chunk(cid)
b'some encoded keys and values'
>>> store.close()
"""

from kvswap.store.files import ChunkFile
from kvswap.store.home import Home
from kvswap.store.ledger import Ledger, PeerRecord
from kvswap.store.listing import ArtifactRow, Listing, StoreReport
from kvswap.store.outcome import Outcome
from kvswap.store.records import Records
from kvswap.store.status_files import StatusFiles
from kvswap.store.store import Store
from kvswap.store.unwritten import AuditRow

__all__ = [
    "ArtifactRow",
    "AuditRow",
    "ChunkFile",
    "StatusFiles",
    "Home",
    "Ledger",
    "Listing",
    "Outcome",
    "PeerRecord",
    "Records",
    "Store",
    "StoreReport",
]
