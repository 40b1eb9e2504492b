"""What a monitor knows of one study: a typed, plain snapshot of its run directory; `read` makes it, monitors show it.

The journal is the only source; beside it stand the frozen protocol, the locks that say who is alive, and, where the
study is deployed, the coordinator's list of who is there. Everything is opened for reading only. `read` with the cursor
of an earlier view brings in `rounds` and `events` only what is new since; all other fields are always whole. `merge`
puts both together. At a member's place `member` makes it, of what the coordinator's watch stream tells.

Nothing here is of a patient. Of a site there is its *rounded* size, as the protocol has it, and no other count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal

from pydantic import TypeAdapter

VIEW_VERSION = 1

Status = Literal["preparing", "running", "stalled", "complete", "incomplete", "failed", "unknown"]
Outcome = Literal[
    "contributed",    # its update is in the aggregate
    "asked",          # the request is out
    "waiting",        # the round is open and it was not asked yet
    "late",           # nothing came by the deadline
    "rejected",       # the sanity gate did not take its update (norm, shape, NaN)
    "refused",        # its reply was malformed, or for another request
    "out_of_budget",  # the next round would go over its privacy budget
    "abstained",      # its policy says no
    "absent",         # nobody stands for it
    "failed",         # its trainer, or the way to it, failed
    "not_sampled",    # not drawn for this round
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Auc:
    """An AUC on the evaluator's women, with its 95 % interval where the journal has enough to reckon it."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasesView:
    """Where a site's seconds of a round went; what each is stands in `shared_model.phases` and `server.rounds.phases`.

    wait, load, train, mask: as the site says; send: what is left of round_trip. None: not known.
    """

    wait: float | None = None
    load: float | None = None
    train: float | None = None
    mask: float | None = None
    send: float | None = None
    round_trip: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One site in one round. reason: in words, empty when all is well; code: its stable first word.

    seconds: of the trainer, as the site says; phases: None where no answer came, or of an older journal; bytes: of
    tensors and fields, None while the answer is awaited and where they are not told; loss: None under privacy; epsilon:
    spent by its training patients after this round, None without privacy. norm: L2 length of its update; cosine: to the
    mean update of the others; both None where the coordinator did not see it by itself (`server.rounds.influence`).
    """

    site: str
    outcome: Outcome
    reason: str = ""
    code: str = ""
    seconds: float | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    loss: float | None = None
    epsilon: float | None = None
    norm: float | None = None
    cosine: float | None = None
    phases: PhasesView | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Something that the round loop did. attempt: from 1; name: open, collect, aggregate, evaluate, save, close, ..."""

    attempt: int
    name: str
    time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundView:
    """One round as it stands: the last attempt, and the steps of all. Round 0: the initial weights.

    state: as the journal has it (`server.rounds.states.RoundState`). opened: seconds since 1970; seconds: from there to
    its last step. cells: by site, those that are known. auc: of `fused`, `image`, `clinical` on `selection`.
    """

    number: int
    attempt: int = 0
    state: str = ""
    phase: str = ""
    opened: float | None = None
    seconds: float | None = None
    contributed: int = 0
    steps: tuple[Step, ...] = ()
    weights_before: str | None = None
    weights_after: str | None = None
    cells: tuple[Cell, ...] = ()
    auc: Mapping[str, Auc] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventView:
    """An event of the journal with its number. text and data may hold words of a site: never HTML, never an order."""

    id: int
    time: float
    kind: str
    severity: str
    code: str = ""
    round: int = 0
    attempt: int = 0
    site: str | None = None
    text: str = ""
    data: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePrivacy:
    """What a site's training patients have spent, and where that leads.

    epsilon, budget: at `delta`; share: spent of budget, 0 to 1; projected: at the study's end, if it takes part in all
    that is left; last_round: the last one that it can afford, None when it can afford all; words: all of it.
    """

    epsilon: float
    budget: float
    delta: float
    share: float
    projected: float
    last_round: int | None = None
    words: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartyView:
    """What is known of any party of a study, an evaluator or a hospital.

    heard: seconds since 1970 of its last sign of life; silent_s: seconds since then while it is overdue, else None.
    present: whether it says that it is there, on one machine whether its trainer is alive; None where nobody knows.
    certificate_expires: seconds since 1970. words: what it says is wrong.
    """

    name: str
    heard: float | None = None
    silent_s: float | None = None
    present: bool | None = None
    device: str = ""
    release: str = ""
    trainer_up: bool | None = None
    clock_ahead_s: float | None = None
    certificate_expires: float | None = None
    words: str = ""

    @property
    def hangs(self) -> bool:
        """Whether nothing comes of it as it is: it is silent, or its courier says that its trainer does not answer."""
        return self.silent_s is not None or self.trainer_up is False


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteView(PartyView):
    """One hospital. patients: rounded, of the protocol. now: its outcome in the newest round.

    None of patients, bytes: it is not told (a member's monitor); of bytes also: no request of it was answered yet.
    rounds: closed rounds by outcome, as the journal counts them. seconds, phases: of its last round. bytes: of the
    study. gives: what leaves it, in words.
    """

    patients: int | None
    now: Outcome = "waiting"
    reason: str = ""
    rounds: Mapping[str, int] = field(default_factory=dict)
    seconds: float | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    privacy: SitePrivacy | None = None
    gives: str = ""
    phases: PhasesView | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best checkpoint so far. chosen: the study has come to its choice, and this is it."""

    round: int
    auc: Auc
    model: str
    rule: str
    chosen: bool = False
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmView:
    """An alarm that stands now. rule: stable name; since: seconds since 1970."""

    rule: str
    severity: str
    text: str
    site: str | None = None
    round: int = 0
    since: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberView:
    """Of a monitor that a member runs at its own place, over the coordinator's watch stream: who it is and how the line
    is. up: it stands; since: seconds since 1970 from when on it is so; words: of the line; hidden: what is not told."""

    name: str
    up: bool
    since: float
    words: str
    hidden: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyView:
    """One study. Times are seconds since 1970, UTC.

    status, sentence: the answer at a glance. state: `server.rounds.states.StudyState`, or `none` without a journal.
    round, attempt: the newest; closed: rounds that are done; phase: of the newest. deadline: of the open attempt.
    ends: when it will end, as far as that can be told. round_s: what a round takes, the median of the last ten.
    due: sites that the open round waits for. evaluators: who measures, mostly one. rounds, events: all, or what is new
    since the cursor that was given.
    whole: both are from the beginning (no cursor was given, or it is another study's). cursor: for the next `read`.
    coarse_times: seconds of sites are told in steps (`Protocol.coarse_times`). explores: it counts women, once, and has
    no rounds, model or test; its replies' bytes and epsilon are not in the journal.
    missing: parts of the run directory that could not be read, in words. member: who watches, None at the coordinator.
    """

    version: int = VIEW_VERSION
    run: str
    name: str
    now: float
    status: Status
    sentence: str
    state: str = "none"
    reason: str = ""
    round: int = 0
    attempt: int = 0
    planned: int = 0
    closed: int = 0
    phase: str = ""
    started: float | None = None
    last_step: float | None = None
    deadline: float | None = None
    deadline_s: float | None = None
    ends: float | None = None
    round_s: float | None = None
    quorum: int = 0
    asked_per_round: int = 0
    contributed: int = 0
    due: tuple[str, ...] = ()
    deployed: bool = False
    alive: bool = False
    strategy: str = ""
    score: str = "fused"
    collapse_auc: float | None = None
    private: bool = False
    privacy_words: str = ""
    release: str = ""
    protocol_sha256: str = ""
    coarse_times: bool = False
    explores: bool = False
    best: Best | None = None
    test: Mapping[str, Auc] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    sites: tuple[SiteView, ...] = ()
    evaluators: tuple[PartyView, ...] = ()
    rounds: tuple[RoundView, ...] = ()
    events: tuple[EventView, ...] = ()
    alarms: tuple[AlarmView, ...] = ()
    whole: bool = True
    cursor: str = "0.0"
    missing: tuple[str, ...] = ()
    member: MemberView | None = None

    def site(self, name: str) -> SiteView | None:
        """One site by name."""
        return next((site for site in self.sites if site.name == name), None)


def merge(old: StudyView, new: StudyView) -> StudyView:
    """Both as one: the newer facts, and the rounds and events of both. `new` was read with the cursor of `old`."""
    if new.whole:
        return new
    rounds = {view.number: view for view in (*old.rounds, *new.rounds)}
    events = (*old.events, *new.events)
    return replace(new, rounds=tuple(rounds[n] for n in sorted(rounds)), events=events, whole=old.whole)


def to_json(view: StudyView) -> bytes:
    """The view as JSON; a number that is none (infinite, NaN) is null there."""
    return _adapter().dump_json(view)


def from_json(data: bytes) -> StudyView:
    """The view out of :func:`to_json`.

    Raises:
        ValueError: it is none.
    """
    return _adapter().validate_json(data)


@cache
def _adapter() -> TypeAdapter[StudyView]:
    return TypeAdapter(StudyView)
