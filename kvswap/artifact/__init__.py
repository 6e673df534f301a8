"""The artifact format: how a KV cache is cut into chunks, what its manifest says, and how both are read and written.

`manifest` and `layout` are plain values (no torch); `tensors` is where bytes become tensors.
The format's text, schema and test vectors are in `manifests/` at the top of the repository.
"""
