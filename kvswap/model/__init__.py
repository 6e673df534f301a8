"""Models: finding and loading them, their identity, canonical prefill, and conversion of caches from and to tensors.

Only this package imports transformers, and only when a model is loaded: identity digests and the catalogue need neither
transformers nor torch.
"""
