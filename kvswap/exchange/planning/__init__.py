"""Choosing between fetching and prefilling."""
