"""The study report: one self-contained HTML page out of a run directory; called by the launcher and by `mammofed report`."""

from server.reporting.report import write_report

__all__ = ["write_report"]
