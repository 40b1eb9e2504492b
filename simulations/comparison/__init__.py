"""Sets finished studies side by side: at the end of `--multirun`, and by `mammofed simulate compare`."""

from simulations.comparison.document import compare, write_comparison
from simulations.comparison.jobs import Job, find_runs
from simulations.comparison.table import comparison_table, write_page

__all__ = ["Job", "compare", "comparison_table", "find_runs", "write_comparison", "write_page"]
