"""Codecs, which turn tensors into bytes and back.  No IO; every codec has an id and states whether it is lossless.

>>> import numpy as np
>>> part = np.arange(2 * 4 * 8, dtype=np.uint16).reshape(2, 4, 8)
>>> name, wire = encode([part], "bfloat16", "planes")
>>> out = np.empty_like(part)
>>> decode(name, wire, [out], "bfloat16")
>>> bool((out == part).all())
True
"""

from kvswap.codec.base import Codec, decode, encode, get, names, register
from kvswap.codec.int8 import Int8
from kvswap.codec.parts import Part, raw_length
from kvswap.codec.planes import Planes
from kvswap.codec.predictive import Predictive, Predictor
from kvswap.codec.predictive.context import Context
from kvswap.codec.predictive2 import Predictive2
from kvswap.codec.raw import Raw

register(Raw())
register(Planes())
register(Predictive())
register(Predictive2())
register(Int8(by_channel=False))
register(Int8(by_channel=True))

__all__ = ["Codec", "Context", "Part", "Predictor", "decode", "encode", "get", "names", "raw_length", "register"]
