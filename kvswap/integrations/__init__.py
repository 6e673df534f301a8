"""Adapters to inference engines.  Nothing in kvswap imports from here."""
