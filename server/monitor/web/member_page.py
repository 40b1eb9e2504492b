"""Serves a member's own page while `mammofed site watch` follows the coordinator; called by `mammofed monitor`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from server.monitor.member import MemberStudies
from server.monitor.metrics import render
from server.monitor.web.serve import Door, serving
from shared_model.errors import MammoFedError
from shared_model.protocol import Protocol
from shared_model.story import Story, Watcher


@contextmanager
def member_page(
    story: Story, protocols: Callable[[], Mapping[str, Protocol]], *, door: Door, study: str | None,
    say: Callable[[str], None], open_browser: bool,
) -> Iterator[Watcher]:  # fmt: skip
    """The page of a member's story inside the block, as a `shared_model.story.Page`.

    A member that is not admitted any more keeps what it has heard on the page until Ctrl-C; one that never was is
    told so at once.

    Args:
        study: that one alone; None: all. say: is told the address, and why nothing more will come.
    """
    studies = MemberStudies(story, protocols, study=study)
    with serving(studies, door, metrics=render, open_browser=open_browser) as url:
        say(f"Monitor  {url}   (Ctrl-C ends it; the study goes on)")
        try:
            yield studies
        except MammoFedError as error:
            if not story.studies:
                raise
            try:  # around the words too: who reads them may press Ctrl-C before this waits
                say(f"Nothing more will come: {error.problem}. The page keeps what was heard until Ctrl-C.")
                threading.Event().wait()
            except KeyboardInterrupt:
                raise error from None
