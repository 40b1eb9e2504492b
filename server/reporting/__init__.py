"""The study report: one self-contained page out of a run directory; for the launcher and `mammofed report`."""

from server.reporting.report import write_report

__all__ = ["write_report"]
