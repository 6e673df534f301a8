"""Tells whether this installation can compute: torch and transformers are an extra of the package.

A node without them finds, judges, keeps and serves artifacts; it publishes, answers and recomputes nothing.
"""

from __future__ import annotations

from importlib.util import find_spec

from kvswap.core.errors import NotFound
from kvswap.core.failures import INSTALL_TORCH

PACKAGES = ("torch", "transformers")


def missing() -> list[str]:
    """Name the packages that computing needs and that are not installed.  None of them is imported."""
    return [name for name in PACKAGES if not _installed(name)]


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):  # something hides it, or is half loaded
        return False


def require(what: str) -> None:
    """Raise `NotFound` with the command that helps, unless what computes is installed.  `what` needs it."""
    if lacking := missing():
        raise NotFound(
            f"{what} needs {' and '.join(lacking)}, which this installation does not have",
            cause="kvswap was installed without its extra `torch`: it shares and fetches, and computes nothing",
            hint=INSTALL_TORCH,
        )
