"""Draws what a member knows of its studies: in place on a terminal, else one line an event. Called by `run`.

Whatever the coordinator or another site said is shown as plain text of printable characters, never as markup.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from shared_model.control import StudyEvent, plain
from shared_model.figures import sparkline
from shared_model.story import Story, StudyStory, Watcher

STYLES = {"info": "dim", "warning": "yellow", "error": "bold red"}
STATES = {"running": "cyan", "complete": "green", "incomplete": "bold red", "stopped": "yellow"}
MOST_SHOWN = 4  # studies on one screen: those that were heard of last
CURVE = 30  # rounds


class Screen(Watcher):
    """Where a member's studies are shown; a context manager that gives the terminal back.

    Args:
        console: where to draw. study: this study alone. clock: seconds since 1970.
    """

    def __init__(self, story: Story, *, console: Console | None = None, study: str | None = None,
                 clock: Callable[[], float] = time.time) -> None:  # fmt: skip
        self._story, self._study, self._clock = story, study, clock
        self._console = console or Console()
        self._drawn = self._console.is_terminal and not self._console.is_dumb_terminal
        self._line = "connecting"
        self.tunnel: Callable[[], str] | None = None  # how the line is at this moment, while there is one
        self._live = Live(console=self._console, refresh_per_second=4, get_renderable=self.draw)

    def __enter__(self) -> Screen:
        if self._drawn:
            self._live.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            self._live.stop()

    def told(self, event: StudyEvent) -> None:
        """An event came; the story has it already."""
        if not self._drawn and self._study in (None, event.study):
            self._print(line_of(event))

    def line(self, words: str, *, up: bool) -> None:
        """How the line to the coordinator is, in words."""
        if words != self._line and not self._drawn:
            self._print(words)
        self._line = words

    def draw(self) -> RenderableType:
        """Everything as one renderable."""
        chosen = [study for name, study in list(self._story.studies.items()) if self._study in (None, name)]
        chosen.sort(key=lambda study: study.heard or 0.0, reverse=True)
        now = self._clock()
        parts: list[RenderableType] = [draw_study(study, me=self._story.me, now=now) for study in chosen[:MOST_SHOWN]]
        if len(chosen) > MOST_SHOWN:
            parts.append(Text(f"and {len(chosen) - MOST_SHOWN} other studies: choose one with --study", style="dim"))
        if not parts:
            parts.append(Text("Nothing was heard of a study yet.", style="dim"))
        line = self._line if self.tunnel is None else self.tunnel()
        return Group(*parts, Text(f"line: {plain(line)}", style="dim"))

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def line_of(event: StudyEvent) -> str:
    """One event as one line of plain text."""
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time))
    place = f"round {event.round}{f' attempt {event.attempt}' if event.attempt > 1 else ''}" if event.round else "study"
    data = [f"{name.replace('_', ' ')} {f'{value:.4g}' if isinstance(value, float | int) else value}"
            for name, value in event.data.items()]  # fmt: skip
    words = ", ".join(filter(None, [f"{event.kind.replace('_', ' ')} {event.site or ''}".strip(), event.code, *data,
                                    event.text]))  # fmt: skip
    loud = "" if event.severity == "info" else f"{event.severity.upper()} "
    return f"{stamp} {plain(event.study)} {loud}{place}: {plain(words)}"


def draw_study(study: StudyStory, *, me: str, now: float) -> RenderableType:
    """One study as one renderable."""
    rounds = f"{study.round} of {study.rounds}" if study.rounds else str(study.round)
    attempt = f" (attempt {study.attempt})" if study.attempt > 1 else ""
    head = Text.assemble((study.state, STATES.get(study.state, "yellow")), ("  round ", "dim"), f"{rounds}{attempt}",
                         ("  closed ", "dim"), str(study.closed), ("  last heard ", "dim"),
                         _ago(study.heard, now))  # fmt: skip
    own = Text.assemble((f"{me} (this site)  ", "bold"), study.sites.get(me, "not asked yet"))
    if study.seconds is not None:
        own.append(f"  {study.seconds:.1f} s")
    if study.epsilon is not None:
        budget = "" if study.budget is None else f" of {study.budget:.2f}"
        near = bool(study.budget) and study.epsilon >= 0.8 * (study.budget or 0.0)
        own.append(f"  epsilon {study.epsilon:.2f}{budget}", style="yellow" if near else "")
    outcomes = Counter(study.own.values())
    if outcomes:
        own.append("  rounds: " + ", ".join(f"{count} {name}" for name, count in outcomes.most_common()), style="dim")
    others = Counter(state for name, state in study.sites.items() if name != me)
    rest = Text("others: " + (", ".join(f"{n} {s}" for s, n in others.most_common()) or "not heard of"), style="dim")
    recent = [Text(line_of(event), style=STYLES[event.severity], no_wrap=True, overflow="ellipsis")
              for event in study.recent]  # fmt: skip
    return Panel(Group(head, own, rest, _curve(study), *recent), title=Text(f"Study {study.name}"), border_style="blue")


def _curve(study: StudyStory) -> Text:
    if not study.auc:
        return Text("held-out AUC (selection): not measured yet", style="dim")
    values = [value for _, value in study.auc][-CURVE:]
    blocks = sparkline(values, low=0.5, high=1.0)
    return Text.assemble(("held-out AUC (selection): fused ", "dim"), f"{values[-1]:.3f}  ", (blocks, "green"))


def _ago(heard: float | None, now: float) -> str:
    if heard is None:
        return "never"
    ago = max(0.0, now - heard)
    return f"{ago:.0f} s ago" if ago < 120 else f"{ago / 60:.0f} min ago" if ago < 7200 else f"{ago / 3600:.0f} h ago"
