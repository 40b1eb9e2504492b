"""What a running study tells: one event a thing that happened, kept in the journal and shown to an observer.

Written by the round loop; read by the live view, the report and any exporter. No event holds anything of a patient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["info", "warning", "error"]
Kind = Literal[
    "study_started", "study_resumed", "site_present", "site_absent", "round_opened", "site_started", "site_replied",
    "updates_summed", "attempt_failed", "left_out", "evaluated", "checkpoint_written", "round_closed", "model_chosen",
    "tested", "explored",
    "site_evaluated", "waiting", "alarm", "finished",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened.

    time: seconds since 1970, UTC. round: 0 outside a round. site: a site's or the evaluator's name.
    code: stable word for counting (`collapse`, `late`, `quorum`, ...), empty where the kind says it all.
    data: numbers and short words, e.g. seconds, bytes_up, bytes_down, loss, epsilon, budget, outcome, auc_fused;
        `site_replied` has the phases as wait_s, load_s, train_s, mask_s, send_s and round_trip_s, as far as known.
    """

    time: float
    kind: Kind
    severity: Severity = "info"
    code: str = ""
    round: int = 0
    attempt: int = 0
    site: str | None = None
    text: str = ""
    data: Mapping[str, float | str] = field(default_factory=dict)


Observer = Callable[[Event], None]
