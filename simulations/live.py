"""What a person sees while a study is prepared and run: a live terminal view, or plain lines; used by the launcher.

Preparation reports itself through `LiveView.stage`, the round loop through `LiveView.observe`. On a terminal the view
is drawn in place with rich; otherwise each stage and each event is one line, so that a log file stays readable.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self
from typing import Protocol as Interface

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from server.rounds.events import Event
from shared_model.alive import FOLDER as ALIVE
from shared_model.alive import SILENT_S, last_beats
from shared_model.protocol import Protocol
from simulations.engine import GridEvent
from simulations.live_state import SHOWN_SITES, SiteRow, StudyState, notable
from simulations.tables import final_tables
from simulations.words import bytes_in_words, seconds_in_words, sparkline

REFRESH_PER_SECOND = 4
PLAIN_SHARES = 4  # a stage without a terminal reports its start, each further quarter and its end
NARROW = 92  # columns of a terminal below which the view leaves traffic and patients out
ROUNDS_BAR = 40  # columns
MAX_SILENT = 4  # lines

STATE_STYLES = {
    "waiting": "dim", "asked": "dim", "training": "cyan", "replied": "green", "contributed": "green",
    "measured": "green", "abstained": "yellow", "late": "yellow", "not_sampled": "dim",
    "refused": "bold red", "failed": "bold red", "absent": "bold red",
}  # fmt: skip
SEVERITY_STYLES = {"info": "", "warning": "yellow", "error": "bold red"}
SITE_KINDS = ("site_present", "site_replied", "site_evaluated")  # a line each, while the sites are few
LOUD_KINDS = ("alarm", "attempt_failed", "waiting")  # kept above the live view, so that they do not scroll out of it

Advance = Callable[[int, int | None], None]  # (units done so far, units in all or None when unknown)


class Progress(Interface):
    """How a long preparation reports itself: `with progress.stage("films", 120) as advance: ... advance(17, 120)`."""

    def stage(self, name: str, total: int | None) -> AbstractContextManager[Advance]:
        """A stage of `total` units (None: not known yet); ends, well or not, with the block."""


@contextmanager
def stop_on_interrupt(stop: threading.Event, view: LiveView) -> Iterator[None]:
    """While inside, Ctrl-C (or SIGTERM) asks the study to stop cleanly; a second one interrupts at once.

    Must be entered in the main thread, as signal handlers demand.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        # Not from the handler itself: it may have interrupted the very thread that holds the terminal's lock.
        words = "Stopping: closed rounds are kept, `mammofed simulate resume` goes on. Ctrl-C again leaves at once."
        threading.Thread(target=view.note, args=(words,), daemon=True).start()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class LiveView:
    """The view of one study; a context manager that gives the terminal back whatever happens. Safe from any thread.

    Args:
        run_dir: of the study; its `protocol.json` is read when the first event comes.
        console: where to draw; standard output by default.
        clock: seconds, monotonic.
    """

    def __init__(
        self, run_dir: Path, *, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._run_dir, self._clock, self._lock = run_dir, clock, threading.RLock()
        self._console = console or Console()
        self._drawn = self._console.is_terminal and not self._console.is_dumb_terminal
        self._began = self._study_began = clock()
        self._state: StudyState | None = None
        self._jobs: dict[str, TaskID] = {}
        self._bars = Bars(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=self._console,
        )  # fmt: skip
        self._live = Live(console=self._console, refresh_per_second=REFRESH_PER_SECOND, get_renderable=self._draw)

    def __enter__(self) -> Self:
        if self._drawn:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._drawn:
            self._live.stop()

    @contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[Advance]:
        """A stage of preparation with a progress bar, or a line at its start, each further quarter and its end."""
        began, done = self._clock(), 0
        task = self._bars.add_task(name, total=total)
        if not self._drawn:
            self._line(f"{name} ..." if total is None else f"{name}: {total:,} to do")

        def advance(count: int, of: int | None) -> None:
            nonlocal done
            before, done = done, max(done, count)
            self._bars.update(task, completed=done, total=of if of is not None else total)
            if of and not self._drawn and done < of and before * PLAIN_SHARES // of < done * PLAIN_SHARES // of:
                self._line(f"{name}: {done:,} of {of:,}")

        ended = False
        try:
            yield advance
            ended = True
        finally:
            self._bars.remove_task(task)
            words = f"{name}{f'  {done:,}' if done else ''}  "
            mark = ("✓ ", "green") if ended else ("✗ ", "red")
            took = seconds_in_words(self._clock() - began)
            if self._drawn:
                self._console.print(Text.assemble(mark, words, (took, "dim")))
            else:
                self._line(f"{words}{'done' if ended else 'NOT finished'} in {took}")

    def job(self, name: str, done: int, total: int) -> None:
        """A training among several: a bar while it runs, or a line at its end."""
        if done < total and name not in self._jobs:
            self._jobs[name] = self._bars.add_task(f"  {name}", total=total)
        if name in self._jobs:
            self._bars.update(self._jobs[name], completed=done, total=total)
        if done >= total:
            if name in self._jobs:
                self._bars.remove_task(self._jobs.pop(name))
            self.note(f"{name}: {total} rounds")

    def observe(self, event: Event) -> None:
        """Take in one event of the round loop."""
        with self._lock:
            if self._state is None:
                self._state = StudyState.of(Protocol.read(self._run_dir / "protocol.json"))
                self._study_began = self._clock()
            self._state.apply(event)
            line = event_line(event, private=self._state.private)
            many = len(self._state.sites) > SHOWN_SITES
        # Never printed under our lock: the refresh thread holds rich's lock while it draws and then wants ours.
        if not self._drawn:
            usual = event.severity == "info" and many and event.kind in SITE_KINDS
            if not usual and event.kind != "site_started":  # all sites start at once, and the round's opening says so
                self._line(line)
        elif event.kind in LOUD_KINDS:
            self._console.print(Text(f"! {line}", style=SEVERITY_STYLES.get(event.severity, "yellow")))

    def deliver(self, event: GridEvent) -> None:
        """Take in a message's way to one site: events of the round loop come only when all sites have answered."""
        if self._state is None or event.message_type != "train":
            return
        states = {"started": "training", "finished": "failed" if event.failed else "replied"}
        with self._lock:
            self._state.deliver(event.site, state=states[event.kind])

    def note(self, text: str) -> None:
        """Say one line to the person, beside the view."""
        if self._drawn:
            self._console.print(Text(text))
        else:
            self._line(text)

    def final(self, summary: Mapping[str, Any], report: Path) -> None:
        """Print what came of the study, once the view is closed."""
        protocol = Protocol.read(self._run_dir / "protocol.json")
        self._console.print(final_tables(summary, protocol, run_dir=self._run_dir, report=report))

    def _line(self, text: str) -> None:
        # markup and highlighting off: what a site or a file said must come out as it is; soft_wrap: one event, one line
        stamp = f"[{self._clock() - self._began:7.1f} s]"
        self._console.print(f"{stamp} {text}", markup=False, highlight=False, soft_wrap=True)

    def _draw(self) -> RenderableType:
        with self._lock:
            if self._state is None:
                return self._bars if self._bars.tasks else Text("")
            return draw_study(self._state, width=self._console.width, elapsed=self._clock() - self._study_began,
                              silent=silent_parties(self._run_dir))  # fmt: skip


def silent_parties(run_dir: Path) -> dict[str, float]:
    """Parties whose trainer gives no sign of life, though its process may be there, and for how many seconds."""
    gone = {name: time.time() - beat for name, beat in last_beats(run_dir / ALIVE).items()}
    return {name: seconds for name, seconds in gone.items() if seconds > SILENT_S}


def event_line(event: Event, *, private: bool) -> str:
    """One event as one line of plain text; under DP the loss reads `private`, because it stays at the site."""
    attempt = f" attempt {event.attempt}" if event.attempt > 1 else ""
    place = f"round {event.round}{attempt}" if event.round else "study"
    data = [f"{key.replace('_', ' ')} {_datum(key, value)}" for key, value in event.data.items()]
    if private and event.kind == "site_replied" and "loss" not in event.data:
        data.append("loss private")
    words = f"{event.kind.replace('_', ' ')}{f' {event.site}' if event.site else ''}"
    line = f"{place}: " + ", ".join([words, *data, *([event.text] if event.text else [])])
    return line if event.severity == "info" else f"{event.severity.upper()} {line}"


def _datum(key: str, value: float | str) -> str:
    if isinstance(value, str):
        return value
    return bytes_in_words(value) if key.startswith("bytes_") else f"{value:.4g}"


def draw_study(
    state: StudyState, *, width: int, elapsed: float, silent: Mapping[str, float] | None = None
) -> RenderableType:
    """The whole study as one renderable. width: columns of the terminal; elapsed: seconds since the study began;
    silent: seconds by party whose trainer hangs."""
    attempt = f" (attempt {state.attempt})" if state.attempt > 1 else ""
    head = Text.assemble(
        ("round ", "dim"), (f"{state.round}/{state.rounds}{attempt}", "bold"), ("  phase ", "dim"), state.phase,
        ("  closed ", "dim"), str(state.closed), ("  elapsed ", "dim"), seconds_in_words(elapsed),
        ("  traffic ", "dim"), bytes_in_words(state.bytes),
    )  # fmt: skip
    recent = [Text(event_line(event, private=state.private), style=SEVERITY_STYLES.get(event.severity, "") or "dim",
                   no_wrap=True, overflow="ellipsis") for event in state.recent]  # fmt: skip
    hangs = [Text(f"{name} is silent for {seconds_in_words(seconds)}: its trainer hangs or is gone", style="bold red")
             for name, seconds in sorted((silent or {}).items())[:MAX_SILENT]]  # fmt: skip
    body = Group(head, _rounds_bar(state), *hangs, _site_table(state, narrow=width < NARROW), _selection_line(state),
                 *recent)  # fmt: skip
    return Panel(body, title=f"MammoFed study [bold]{state.study}[/]", subtitle=state.status, border_style="blue")


def _rounds_bar(state: StudyState) -> RenderableType:
    filled = min(ROUNDS_BAR, round(ROUNDS_BAR * state.closed / state.rounds))
    return Text.assemble(("━" * filled, "blue"), ("━" * (ROUNDS_BAR - filled), "grey30"))


def _site_table(state: StudyState, *, narrow: bool) -> RenderableType:
    table = Table(box=None, expand=True, pad_edge=False, header_style="dim")
    table.add_column("Site", no_wrap=True)
    if not narrow:
        table.add_column("Patients", justify="right")
    table.add_column("State", no_wrap=True)
    table.add_column("Loss", justify="right")
    if state.private:
        table.add_column(f"Epsilon of budget (delta {state.delta:g})", justify="right", no_wrap=True)
    table.add_column("Seconds", justify="right")
    if not narrow:
        table.add_column("Sent / received", justify="right", no_wrap=True)
    rows, others = notable(state.sites.values())
    for row in rows:
        table.add_row(*_site_cells(row, private=state.private, narrow=narrow))
    if others:
        words = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in others.items())
        return Group(table, Text(f"and {sum(others.values())} others: {words}", style="dim"))
    return table


def _site_cells(row: SiteRow, *, private: bool, narrow: bool) -> list[RenderableType]:
    loss = "– private" if private else "–" if row.loss is None else f"{row.loss:.3f}"
    cells: list[RenderableType] = [row.name]
    if not narrow:
        cells.append(f"{row.patients:,}")
    cells += [Text(row.state.replace("_", " "), style=STATE_STYLES.get(row.state, "")), loss]
    if private:
        cells.append(_epsilon(row))
    cells.append("–" if row.seconds is None else f"{row.seconds:.1f}")
    if not narrow:
        cells.append(f"{bytes_in_words(row.bytes_up)} / {bytes_in_words(row.bytes_down)}")
    return cells


def _epsilon(row: SiteRow) -> Text:
    budget = "–" if row.budget is None else f"{row.budget:.2f}"
    if row.epsilon is None:
        return Text(f"– / {budget}")
    share = row.epsilon / row.budget if row.budget else 0.0
    return Text(f"{row.epsilon:.2f} / {budget}", style="" if share < 0.8 else "yellow")


def _selection_line(state: StudyState) -> Text:
    if not state.selection:
        return Text("held-out AUC (selection): not measured yet", style="dim")
    last = state.selection[-1]
    curve = sparkline([point.fused for point in state.selection][-30:], low=0.5, high=1.0)
    values = {"fused": last.fused, "image": last.image, "clinical": last.clinical}
    parts = [f"{name} {value:.3f}" for name, value in values.items() if not math.isnan(value)]
    return Text.assemble(("held-out AUC (selection): ", "dim"), "  ".join(parts), "  ", (curve, "green"))
