"""What was measured, to be read: tables, reliability diagrams, one self-contained page.

Everything here is a function of result files; nothing is trained and no accelerator is needed.
"""

from kdjax.report.diagram import reliability_diagram
from kdjax.report.page import page
from kdjax.report.tables import COLUMNS, Column, Grid, Row, Table, table

__all__ = ["COLUMNS", "Column", "Grid", "Row", "Table", "page", "reliability_diagram", "table"]
