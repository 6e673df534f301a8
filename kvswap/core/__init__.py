"""Values that every room shares: ids, errors, limits, settings, strict msgpack.  Imports nothing of ours."""
