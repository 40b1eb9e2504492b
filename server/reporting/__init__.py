"""The reports: one self-contained page out of a run directory, of a study or of a comparison; for the launcher and
`mammofed report`."""

from server.reporting.evidence_page import write_evidence_report
from server.reporting.report import write_report

__all__ = ["write_evidence_report", "write_report"]
