"""What was measured, to be read: tables, reliability diagrams, one self-contained page (floor 5; the only matplotlib).

Everything here is a function of result files; nothing is trained and no accelerator is needed.
"""

from kdjax.report.diagram import reliability_diagram
from kdjax.report.page import page
from kdjax.report.tables import COLUMNS, Column, Row, Table, table

__all__ = ["COLUMNS", "Column", "Row", "Table", "page", "reliability_diagram", "table"]
