"""Has the image branch collapsed? A decision on the history of its selection AUCs; used by the server. No torch.

When image and table are trained together, the table converges first and may carry the image branch away (measured:
image AUC from 0.75 to 0.45 within six epochs). Phases, a low encoder rate and modality dropout guard against it; this
alarm says when they did not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CollapseAlarm:
    """The image branch's selection AUC fell below `floor` after having been `best`."""

    auc: float
    best: float
    floor: float

    @property
    def text(self) -> str:
        """One sentence for journal and screen."""
        return (
            f"image branch has collapsed: selection AUC {self.auc:.3f}, below {self.floor:.3f} after {self.best:.3f}; "
            "lower encoder_rate or learning_rate, or add an image phase"
        )


def collapse_alarm(history: Sequence[float | None], *, floor: float) -> CollapseAlarm | None:
    """The alarm that the newest of the image AUCs (one an evaluated round, None where undefined) gives, if any.

    An AUC that never reached `floor` gives none: such a branch has not learnt yet. Nor does a second low AUC in a row.
    """
    known = [auc for auc in history if auc is not None]
    if len(known) < 2 or known[-1] >= floor or known[-2] < floor:
        return None
    return CollapseAlarm(known[-1], max(known[:-1]), floor)
