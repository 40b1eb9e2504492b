"""A study as a terminal shows it: pure functions from a view to something that rich prints; used by `terminal`.

Names and words of others are shown as plain text of printable characters, never as markup. What a colour says, a word
says, too.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Final

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from server.monitor.alarms import for_people
from server.monitor.standing import seconds_words
from server.monitor.view import EventView, SiteView, StudyView
from shared_model.control import plain
from shared_model.figures import bytes_in_words, sparkline
from shared_model.phases import PHASES

WIDE: Final = 132  # columns from which a round's seconds are told by phase
NARROW: Final = 92  # columns below which traffic and last signs of life are left out
TINY: Final = 60  # below which seconds and counts are, too
BAR: Final = 40
SHOWN_SITES: Final = 16
SHOWN_EVENTS: Final = 5
SHOWN_ALARMS: Final = 4
CURVE: Final = 30  # rounds
QUIET: Final = ("site_present", "site_started", "site_replied", "site_evaluated", "round_opened", "checkpoint_written",
                "round_closed", "evaluated")  # fmt: skip
# One sign and one colour a status, so that none is told by colour alone.
STATUS: Final[dict[str, tuple[str, str]]] = {
    "preparing": ("·", "cyan"), "running": ("▶", "blue"), "stalled": ("‖", "bold yellow"), "complete": ("✓", "green"),
    "incomplete": ("◐", "bold magenta"), "failed": ("✗", "bold red"), "unknown": ("?", "bold dark_orange"),
}  # fmt: skip
OUTCOMES: Final[dict[str, str]] = {
    "contributed": "green", "asked": "cyan", "waiting": "dim", "not_sampled": "dim", "late": "yellow",
    "abstained": "yellow", "out_of_budget": "yellow", "rejected": "bold red", "refused": "bold red",
    "absent": "bold red", "failed": "bold red",
}  # fmt: skip
SEVERITIES: Final[dict[str, str]] = {"info": "dim", "warning": "yellow", "error": "bold red"}
TROUBLE: Final = ("rejected", "refused", "absent", "failed", "late", "out_of_budget", "abstained")


def draw(view: StudyView, *, width: int) -> RenderableType:
    """The whole study. width: columns of the terminal."""
    stand = for_people(view)
    alarms = [_line(f"! {alarm.rule.replace('_', ' ')}: {plain(alarm.text)}", SEVERITIES.get(alarm.severity, ""))
              for alarm in stand[:SHOWN_ALARMS]]  # fmt: skip
    if len(stand) > SHOWN_ALARMS:
        alarms.append(_line(f"and {len(stand) - SHOWN_ALARMS} other alarms", "yellow"))
    events = [event for event in view.events if event.severity != "info" or event.kind not in QUIET]
    recent = [_line(event_line(event), SEVERITIES.get(event.severity, "")) for event in events[-SHOWN_EVENTS:]]
    style = STATUS[view.status][1]
    body = Group(headline(view), _progress(view), *alarms, _sites(view, width=width), _auc(view), *recent)
    return Panel(body, title=Text(f"MammoFed study {plain(view.name)}"), subtitle=Text(plain(view.run), style="dim"),
                 border_style=style.removeprefix("bold "))  # fmt: skip


def headline(view: StudyView) -> Text:
    """The status in one sign, one word and one sentence."""
    sign, style = STATUS[view.status]
    said = plain(view.sentence)
    rest = said.removeprefix(view.status)
    if rest.startswith((":", " ")):  # the sentence begins with the word
        return Text.assemble((f"{sign} {view.status}", style), rest)
    return Text.assemble((f"{sign} {view.status}", style), "  ", said)


def event_line(event: EventView) -> str:
    """One event as one line of plain text."""
    place = f"round {event.round}{f' attempt {event.attempt}' if event.attempt > 1 else ''}" if event.round else "study"
    words = f"{event.kind.replace('_', ' ')} {event.site or ''}".strip()
    text = ", ".join(filter(None, [words, event.code, event.text]))
    loud = "" if event.severity == "info" else f"{event.severity.upper()} "
    return plain(f"{time.strftime('%H:%M:%S', time.localtime(event.time))} {loud}{place}: {text}")


def _line(text: str, style: str) -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _progress(view: StudyView) -> Text:
    if view.explores:
        return Text("an exploration: women are counted once, there are no rounds", style="dim")
    filled = min(BAR, round(BAR * view.closed / view.planned)) if view.planned else 0
    bar = Text.assemble(("━" * filled, "blue"), ("━" * (BAR - filled), "grey30"))
    bar.append(f"  {view.closed} of {view.planned} rounds closed")
    for words in (f"phase {view.phase}" if view.phase else "", f"{view.round_s:.1f} s a round" if view.round_s else "",
                  bytes_in_words(view.bytes_up + view.bytes_down)):  # fmt: skip
        if words:
            bar.append(f"  {words}", style="dim")
    return bar


def _sites(view: StudyView, *, width: int) -> RenderableType:
    table = Table(box=None, expand=True, pad_edge=False, header_style="dim")
    table.add_column("Site", no_wrap=True)
    table.add_column("This round", no_wrap=True)
    if width >= TINY:
        table.add_column("Rounds", justify="right", no_wrap=True)
    if view.private:
        table.add_column("Epsilon of budget", justify="right", no_wrap=True)
    if width >= TINY:
        table.add_column("Seconds", justify="right")
    if width >= NARROW:
        table.add_column("Sent / received", justify="right", no_wrap=True)
        table.add_column("Heard", justify="right", no_wrap=True)
    if width >= WIDE:
        table.add_column(f"Seconds: {' / '.join(PHASES)}", justify="right", no_wrap=True)
    rows, others = notable(view.sites)
    for site in rows:
        table.add_row(*_cells(view, site, width=width))
    if not others:
        return table
    words = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in others.items())
    return Group(table, Text(f"and {sum(others.values())} other sites: {words}", style="dim"))


def _cells(view: StudyView, site: SiteView, *, width: int) -> list[RenderableType]:
    silent = f", silent {seconds_words(site.silent_s)}" if site.silent_s is not None else ""
    style = "bold red" if silent else OUTCOMES.get(site.now, "")
    cells: list[RenderableType] = [Text(plain(site.name)), Text(f"{site.now.replace('_', ' ')}{silent}", style=style)]
    if width >= TINY:
        cells.append(Text(f"{site.rounds.get('contributed', 0)} of {sum(site.rounds.values())}"))
    if view.private:
        cells.append(_epsilon(site))
    if width >= TINY:
        cells.append(Text("–" if site.seconds is None else f"{site.seconds:.1f}"))
    if width >= NARROW:
        cells.append(Text(f"{_bytes(site.bytes_up)} / {_bytes(site.bytes_down)}"))
        cells.append(Text("–" if site.heard is None else f"{seconds_words(view.now - site.heard)} ago"))
    if width >= WIDE:
        cells.append(Text(_phases(site)))
    return cells


def _bytes(count: int | None) -> str:
    return "–" if count is None else bytes_in_words(count)


def _phases(site: SiteView) -> str:
    if site.phases is None:
        return "–"
    parts = [getattr(site.phases, name) for name in PHASES]
    return " / ".join("–" if part is None else f"{part:.1f}" for part in parts)


def _epsilon(site: SiteView) -> Text:
    spent = site.privacy
    if spent is None:
        return Text("–")
    out = f", out after {spent.last_round}" if spent.last_round is not None else ""
    return Text(f"{spent.epsilon:.2f} / {spent.budget:.2f}{out}", style="yellow" if out or spent.share >= 0.8 else "")


def _auc(view: StudyView) -> Text:
    measured = [round_ for round_ in view.rounds if round_.auc]
    if not measured:
        return Text("held-out AUC (selection): not measured yet", style="dim")
    words = []
    for model, auc in measured[-1].auc.items():
        interval = f" ({auc.low:.3f} to {auc.high:.3f})" if auc.low is not None and auc.high is not None else ""
        words.append(f"{model} {auc.value:.3f}{interval if model == view.score else ''}")
    curve = [round_.auc[view.score].value for round_ in measured if view.score in round_.auc][-CURVE:]
    best = f"  best {view.best.auc.value:.3f} in round {view.best.round}" if view.best is not None else ""
    return Text.assemble(("held-out AUC (selection): ", "dim"), "  ".join(words), best, "  ",
                         (sparkline(curve, low=0.5, high=1.0), "green"))  # fmt: skip


def notable(sites: tuple[SiteView, ...], *, most: int = SHOWN_SITES) -> tuple[list[SiteView], dict[str, int]]:
    """The sites to show, in their order, and how many others are in which state: of many, those in trouble first."""
    if len(sites) <= most:
        return list(sites), {}
    rank = {i: 0 if site.silent_s is not None or site.now in TROUBLE else 1 if site.now == "asked" else 2
            for i, site in enumerate(sites)}  # fmt: skip
    chosen = set(sorted(rank, key=lambda i: (rank[i], i))[: most - 1])
    others = Counter(site.now for i, site in enumerate(sites) if i not in chosen)
    return [site for i, site in enumerate(sites) if i in chosen], {str(k): others[k] for k in sorted(others)}
