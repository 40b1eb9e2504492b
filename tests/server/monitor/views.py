"""Views made by hand: a study of two sites in its tenth round, with whatever a test changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from server.monitor.view import Auc, Cell, EventView, PhasesView, RoundView, SitePrivacy, SiteView, StudyView

NOW = 1_795_000_000.0
PHASES = PhasesView(wait=0.1, load=0.5, train=2.0, mask=0.0, send=0.9, round_trip=3.5)


def site(name: str = "north", **changes: Any) -> SiteView:
    base = SiteView(
        name=name, patients=300, now="contributed", heard=NOW - 2, present=True, rounds={"contributed": 9}, seconds=2.5,
        bytes_up=9000, bytes_down=9100, device="cpu", release="0.1.0", trainer_up=True, clock_ahead_s=0.01,
        certificate_expires=NOW + 25 * 86_400, privacy=privacy(0.5), phases=PHASES,
    )  # fmt: skip
    return replace(base, **changes)


def privacy(share: float, **changes: Any) -> SitePrivacy:
    base = SitePrivacy(epsilon=8 * share, budget=8.0, delta=1e-5, share=share, projected=7.9,
                       words=f"{8 * share:.2f} of 8.00 is spent; about 7.90 at the end")  # fmt: skip
    return replace(base, **changes)


def round_(number: int, *, auc: dict[str, float] | None = None, **outcomes: Any) -> RoundView:
    """outcomes: by site, an outcome or a whole `Cell`."""
    cells = tuple(found if isinstance(found, Cell) else Cell(site=name, outcome=found, seconds=2.5)
                  for name, found in outcomes.items())  # fmt: skip
    return RoundView(number=number, attempt=1, state="closed", opened=NOW - 10, seconds=9.0, cells=cells,
                     contributed=sum(cell.outcome == "contributed" for cell in cells),
                     auc={name: Auc(value=value) for name, value in (auc or {}).items()})  # fmt: skip


def refused(number: int, name: str = "north", *, id_: int = 1, text: str = "norm: far", **changes: Any) -> EventView:
    return EventView(**({"id": id_, "time": NOW - 5, "kind": "site_replied", "severity": "warning", "code": "refused",
                         "round": number, "attempt": 1, "site": name, "text": text,
                         "data": {"outcome": "refused"}} | changes))  # fmt: skip


def study(**changes: Any) -> StudyView:
    base = StudyView(
        run="quick-1", name="quick", now=NOW, status="running", sentence="round 10 of 30, 2 of 2 sites", state="rounds",
        round=10, attempt=1, planned=30, closed=9, started=NOW - 100, last_step=NOW - 3, quorum=2, asked_per_round=2,
        contributed=2, deployed=True, alive=True, score="fused", collapse_auc=0.55, private=True, round_s=10.0,
        protocol_sha256="ab" * 32, sites=(site("north"), site("south")), bytes_up=18_000, bytes_down=18_200,
        rounds=tuple(round_(n, auc={"fused": 0.8, "image": 0.75, "clinical": 0.6}, north="contributed",
                            south="contributed") for n in range(1, 10)),
    )  # fmt: skip
    return replace(base, **changes)
