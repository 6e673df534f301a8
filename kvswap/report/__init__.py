"""The building blocks of HTML reports."""

from kvswap.report.html import bars, document, figure, lines, rate, table

__all__ = ["bars", "document", "figure", "lines", "rate", "table"]
