"""Study report and model passport out of a run directory; for launcher, daemon and `mammofed report`."""

from server.reporting.passport import Signature, write_passport
from server.reporting.report import write_report

__all__ = ["Signature", "write_passport", "write_report"]
