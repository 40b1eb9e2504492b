"""What an audit found: plain values, shown by `show`; made by every check."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

Figure = float | int | str


class Verdict(StrEnum):
    """HELD: measured, and nothing contradicts the promise. BROKEN: something does. LEFT_OUT: not measured, and why."""

    HELD = "held"
    BROKEN = "broken"
    LEFT_OUT = "left out"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One answer.

    check: stable name, for scripts. title: what was asked. words: what was found, in a sentence or two.
    figures: the numbers behind it, by name; dimensionless where the name says no unit.
    """

    check: str
    title: str
    verdict: Verdict
    words: str
    figures: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """All findings about one study. seconds: wall clock. claims: epsilon, delta, sigma, q, C, steps, as promised."""

    study: str
    protocol_sha256: str
    release: str
    claims: Mapping[str, Figure]
    findings: tuple[Finding, ...]
    seconds: float

    @property
    def broken(self) -> tuple[Finding, ...]:
        """Findings that contradict the promise."""
        return tuple(finding for finding in self.findings if finding.verdict is Verdict.BROKEN)

    @property
    def headline(self) -> str:
        """The audit in one sentence."""
        if self.broken:
            names = ", ".join(finding.title for finding in self.broken)
            return f"The promise is broken: {names}."
        held = sum(finding.verdict is Verdict.HELD for finding in self.findings)
        left = sum(finding.verdict is Verdict.LEFT_OUT for finding in self.findings)
        return f"Nothing contradicts the promise: {held} checks held" + (f", {left} left out." if left else ".")
