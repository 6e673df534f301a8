"""Adapters to other people's engines.  Nothing in kvswap imports from here."""
