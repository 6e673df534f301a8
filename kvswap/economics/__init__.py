"""The worth of reuse in money and in time: the paper's cost model (arXiv 2606.13361), recomputed.

`model` is pure arithmetic, `figures` the dated numbers it is fed with, `study` the questions it is asked, `page` their
answers with pictures.
"""

from kvswap.economics import page
from kvswap.economics.figures import Figures, read
from kvswap.economics.study import Study, study

__all__ = ["Figures", "Study", "page", "read", "study"]
