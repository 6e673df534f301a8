"""Values that every package shares: ids, errors, limits, settings, strict msgpack.

It imports no other package of kvswap.
"""
