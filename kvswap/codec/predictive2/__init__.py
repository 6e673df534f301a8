"""The codec `predictive2`: what `predictive` does, in a stream that is two to three times as fast.

In the order of the data: `plan` lists a chunk's tensors and what each is predicted from; `frames` splits a value, given
its prediction, into a symbol and a raw field; `lanes` writes those, by `tables`; `plain` walks through the tensors, all
in numpy.  `fast` is the same in C, where that was built: `_core.h` and `_rows.h`, in three forms, which `_stream.c`
makes a module of.  Predictors are those of `predictive`, with tables of their own: `kvswap.codec.predictive.serial`.
"""

from kvswap.codec.predictive2.codec import BACKENDS, Predictive2, decode, encode
from kvswap.codec.predictive2.tables import StreamTables

__all__ = ["BACKENDS", "StreamTables", "Predictive2", "decode", "encode"]
