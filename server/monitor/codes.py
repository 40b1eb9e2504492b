"""What a code in an event or a reason means, in words: events' own codes here, exit codes from `EXIT_CODES.md`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Final

EVENT_CODES: Final[Mapping[str, str]] = {
    "absent": "Nobody stands for this site: no node of it is connected and approved. Is `mammofed site join` running?",
    "abstained": "The site said no to this round: its privacy budget, or its policy. The study goes on without it.",
    "another_name": "A node says another name than the one it was enrolled with. It is left out.",
    "checkpoint_lost": "A round's checkpoint cannot be read back. Its round is asked for again.",
    "collapse": "The image branch does hardly better than chance after it did. Look at its learning rate and noise.",
    "complete": "All rounds are closed and the held-out test is opened.",
    "error": "The way to the site failed: Flower reports an error in place of a reply. It is asked again.",
    "evaluator": "The evaluator did not measure this round: its model cannot be chosen. The round counts all the same.",
    "failed": "The site's trainer, or the way to it, failed. Its reason says which; it is asked again.",
    "foreign_reply": "Replies came to nothing that was asked. They were ignored.",
    "give_up": "The study could not go on: too few sites, or no evaluator. `resume` goes on.",
    "identity": "The reply is for another site, study, round or model than was asked. It is not used.",
    "late": "Nothing came by the round's deadline. The site may be slow, busy or cut off; it is asked again next time.",
    "lost": "The site's node is not connected any more. It comes back by itself when its line does.",
    "malformed": "The reply breaks the message's schema or bounds. The same release at both ends?",
    "no_answer": "A node does not say who it is, so that it can stand for no site.",
    "no_key": "The site's trainer names no signing key, without which nothing is summed securely. Is it up?",
    "no_site_metrics": "The site did not measure the final model on its own women. The result stands without it.",
    "non_finite": "The update holds NaN or infinity: the training diverged, or the site is broken. It is not used.",
    "norm": "The update is larger than the protocol allows, so that it would drown the others. It is not used.",
    "not_approved": "The site's administrator has not approved this protocol: `mammofed site approve`.",
    "not_taken": "The robust strategy left this update out of the aggregate because it lies far from the others.",
    "outage": "The next attempt waits until enough sites are connected again, at most as long as the deadline.",
    "privacy": "The update came without its privacy accounting. It is not used.",
    "quorum": "Fewer sites contributed than the protocol needs. It is tried again, then the study is INCOMPLETE.",
    "refused": "The coordinator did not take the reply; the reason says why. The site is asked anew.",
    "release": "The site runs another release than the protocol names. Install that one there.",
    "second_node": "Another node already stands for this site. One of the two was left running, or lies.",
    "secure_sum": "The secure sum of this round could not be opened; the reason says why.",
    "shape": "A tensor of the update has another shape than the model's. It is not used.",
    "stop": "A person asked to stop after the round that was running. `resume` goes on.",
    "tensors": "The update's tensors are not those of the model. It is not used.",
    "unknown_site": "The node's name is not in the protocol. It takes no part.",
}
_ROW: Final = re.compile(r"^\| (\d+) \| (?:`(\w+)`)? ?\| (.+?) \| (.+?) \|$", re.MULTILINE)


@cache
def explanations() -> dict[str, str]:
    """Words for every code: `late`, and `41` for a site's exit code."""
    text = files("shared_model").joinpath("EXIT_CODES.md").read_text(encoding="utf-8")
    exits = {code: f"{f'{name}: ' if name else ''}{cause}. To do: {cure}." for code, name, cause, cure in
             _ROW.findall(text)}  # fmt: skip
    return {**EVENT_CODES, **exits}
