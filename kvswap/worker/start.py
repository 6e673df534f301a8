"""The first file that the model process runs, by its path: `python -P start.py DESCRIPTOR`.

With `-P` neither the current directory nor this one is searched for modules, so that a stray `queue.py` is not imported
in the place of the standard library's.  The package is therefore loaded by its file: it is the node's own, wherever the
node was started.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def load_package() -> None:
    """Load the package `kvswap` from the directory above this file, regardless of other modules of that name."""
    package = Path(__file__).resolve().parents[1]
    spec = importlib.util.spec_from_file_location(
        "kvswap", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None and spec.loader is not None  # noqa: S101 - it is a file
    module = importlib.util.module_from_spec(spec)
    sys.modules["kvswap"] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    load_package()
    from kvswap.worker.__main__ import main

    sys.exit(main())
