"""The codec `predictive`: lossless, at about the size of int8.

A layer's keys and values are largely a linear function of those of the layers before it.  So they are predicted from
what has been decoded already, in integers, and only the difference is stored.  Measured on bfloat16 KV of texts that
the predictor never saw: 8.0 bits a value where `planes` needs 10.6 (`docs/adr/0012-predictive-codec.md`).

In the order of the data: `predictor` (the weights) with `rope` (positions in integers) predicts a value; `buckets`
splits a value, given its prediction, into a symbol and bits; `rans` and `bits` write those; `codec` walks through the
layers.  `plain` is each step in numpy, `fast` the same in C where that was built; `train` makes predictors and `serial`
reads and writes them.
"""

from kvswap.codec.predictive.codec import BACKENDS, Predictive, decode, encode
from kvswap.codec.predictive.context import Context
from kvswap.codec.predictive.predictor import Predictor, Stack
from kvswap.codec.predictive.serial import dump, load

__all__ = ["BACKENDS", "Context", "Predictive", "Predictor", "Stack", "decode", "dump", "encode", "load"]
