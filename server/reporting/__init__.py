"""The reports (self-contained pages out of run directories, of studies and comparisons) and the model passport;
for the launcher, the daemon and `mammofed report`."""

from server.reporting.evidence_page import write_evidence_report
from server.reporting.passport import Signature, write_passport
from server.reporting.report import write_report

__all__ = ["Signature", "write_evidence_report", "write_passport", "write_report"]
