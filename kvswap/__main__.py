"""`python -m kvswap`."""

from kvswap.cli.main import entry

entry()
