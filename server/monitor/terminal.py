"""`mammofed monitor --terminal`: the studies in place on a terminal, or where there is none one line a change.

The same truth as the page: each second what is new is read, read-only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from server.monitor.alarms import with_alarms
from server.monitor.draw import draw, event_line
from server.monitor.keeper import machine_of
from server.monitor.reading import read
from server.monitor.rules import MonitorFile
from server.monitor.view import StudyView, merge
from shared_model.control import plain

LOOK_S: Final = 1.0
SHOWN: Final = 3  # studies on one screen: those that go on, then the newest


class Terminal:
    """What is shown.

    Args:
        runs: which run directories, asked at each look: a coordinator's next study appears by itself.
    """

    def __init__(
        self, runs: Callable[[], Sequence[Path]], *, console: Console | None = None, file: MonitorFile | None = None,
    ) -> None:  # fmt: skip
        self._runs, self._console, self._file = runs, console or Console(), file or MonitorFile.read()
        self._views: dict[Path, StudyView] = {}
        self.drawn = self._console.is_terminal and not self._console.is_dumb_terminal

    def look(self) -> None:
        """Read what is new; without a terminal, print it."""
        for folder in self._runs():
            before = self._views.get(folder)
            new = read(folder, before.cursor if before else None)
            whole = merge(before, new) if before else new
            view = with_alarms(self._file.rules, whole, machine_of(folder))
            self._views[folder] = view
            if not self.drawn:
                self._say(before, new if before else None, view)

    def shown(self) -> list[StudyView]:
        """The studies of one screen."""
        goes_on = ("stalled", "running", "preparing")
        views = sorted(self._views.values(), key=lambda view: (view.status not in goes_on, -(view.last_step or 0.0)))
        return views[:SHOWN]

    def draw(self) -> RenderableType:
        """The screen."""
        views = self.shown()
        parts: list[RenderableType] = [draw(view, width=self._console.width) for view in views]
        if len(self._views) > len(views):
            parts.append(Text(f"and {len(self._views) - len(views)} other studies: name one", style="dim"))
        return Group(*parts) if parts else Text("No study yet.", style="dim")

    def run(self, stop: threading.Event, *, look_s: float = LOOK_S) -> None:
        """Show until `stop`."""
        if not self.drawn:
            while True:
                self.look()
                if stop.wait(look_s):
                    return
        self.look()
        with Live(console=self._console, auto_refresh=False, get_renderable=self.draw) as live:
            while True:
                live.refresh()
                if stop.wait(look_s):
                    return
                self.look()

    def _say(self, before: StudyView | None, new: StudyView | None, view: StudyView) -> None:
        """What has changed, a line each; of a study that is new here how it stands, and not all that was."""
        name = plain(view.run)
        for event in new.events if new is not None else ():
            self._print(f"{name} {event_line(event)}")
        news = before is None or before.status != view.status or before.closed != view.closed
        if news:
            said = plain(view.sentence)
            self._print(f"{name} {said if said.startswith(view.status) else f'{view.status}: {said}'}")
        known = {(alarm.rule, alarm.site) for alarm in before.alarms} if before else set()
        for alarm in view.alarms:
            if (alarm.rule, alarm.site) not in known:
                again = news and alarm.text == view.sentence  # the line above says it
                words = "" if again else f": {plain(alarm.text)}"
                self._print(f"{name} ALARM {alarm.rule} ({alarm.severity}){words}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
