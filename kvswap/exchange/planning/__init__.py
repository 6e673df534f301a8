"""The choice between fetching a cache and prefilling it."""
