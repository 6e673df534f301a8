"""Models: where they come from, which they are, canonical prefill, and caches to and from tensors.

The only room that imports transformers, and it does so when a model is loaded: identity digests and
the catalogue need neither transformers nor torch.
"""
