"""Studies on a coordinator's disk: proposed, wanted, run, ended; and the reconciler that makes wish and fact agree.

    <home>/studies/<study>/signed.json     the protocol under the coordinator's signature; what sites are shown
                           protocol.json   the same without signature, for the round loop
                           initial.safetensors, journal.sqlite, checkpoints/, report.html, ...  the run directory
                           wanted.json     what the operator asked for, and the Flower run that serves it

Commands only write what is wanted; the daemon brings it about, also after a crash of anything. Who works on a study
holds the lock `journal.lock` in its folder for as long as it lives: that is the lease, and the kernel ends it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from server.deploy.home import CoordinatorHome
from server.deploy.link import Link
from server.enrolment.registry import MemberState
from server.reporting import Signature, write_passport, write_report
from server.rounds.checkpoint import read_arrays
from server.rounds.follow import last_closed, last_step, read_events, study_state
from server.rounds.states import StudyState
from shared_model.audit.heads import SignedHead
from shared_model.certificates import Role
from shared_model.errors import ConfigError, ProtocolError, RoundError, StorageError, WeightsError
from shared_model.messages import weights_sha256
from shared_model.private_files import is_held, make_private_folder, read_private, write_private
from shared_model.protocol import Protocol
from shared_model.signed_protocol import SignedProtocol

INITIAL, SIGNED, WANTED, MODEL = "initial.safetensors", "signed.json", "wanted.json", "model.safetensors"
STOP_FILE = "stop"  # as `server.app` reads it
LOOK_S = 5.0  # between looks at a run that does not hold its study's lock
STARTING_S = 180.0  # a run that has not begun by then is given up and submitted again
RETRY_S = (0.0, 5.0, 15.0, 60.0)  # before runs that follow one that failed; the last value goes on
MAX_FAILED = 8  # runs in a row that brought the study no further; then a person is needed


class Wish(StrEnum):
    """What the operator wants of a study."""

    PROPOSED = "proposed"
    RUNNING = "running"
    STOPPED = "stopped"
    ENDED = "ended"


class Wanted(BaseModel):
    """wanted.json. run_id: of Flower, decimal (JSON's numbers are too small); failed: runs in a row without progress;
    mark, closed: last step and last closed round of the journal when the run was submitted; reason: in words."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    wish: Wish
    run_id: str | None = None
    submitted: float = 0.0
    failed: int = 0
    mark: int = 0
    closed: int = 0
    reason: str = ""


@dataclass(frozen=True)
class StudyFolder:
    """One study of a coordinator."""

    path: Path

    @property
    def name(self) -> str:
        """Name of the study."""
        return self.path.name

    @property
    def journal(self) -> Path:
        """Its journal, which may not be there yet."""
        return self.path / "journal.sqlite"

    def state(self) -> StudyState:
        """Where it is, as its journal has it."""
        return study_state(self.journal)

    def wanted(self) -> Wanted:
        """What is wanted of it.

        Raises:
            StorageError: the file is absent or damaged.
        """
        try:
            return Wanted.model_validate_json(read_private(self.path / WANTED))
        except ValidationError:
            raise StorageError(f"{self.path / WANTED} is damaged", remedy="restore it from a backup") from None

    def want(self, wanted: Wanted) -> None:
        """Write what is wanted of it."""
        write_private(self.path / WANTED, wanted.model_dump_json(indent=1).encode())

    def busy(self) -> bool:
        """Whether somebody works on it: holds the lease."""
        return is_held(self.path / "journal.lock")

    def mark(self) -> int:
        """Number of the last step in its journal."""
        return last_step(self.journal)

    def closed(self) -> int:
        """Number of its last closed round."""
        return last_closed(self.journal)


def studies(home: CoordinatorHome) -> list[StudyFolder]:
    """All studies by name."""
    return [StudyFolder(path.parent) for path in sorted((home.folder / "studies").glob(f"*/{WANTED}"))]


def find_study(home: CoordinatorHome, name: str) -> StudyFolder:
    """A study by name.

    Raises:
        ConfigError: there is none.
    """
    for study in studies(home):
        if study.name == name:
            return study
    raise ConfigError(f"there is no study {name}", expected=", ".join(s.name for s in studies(home)) or "none yet",
                      remedy="propose it first: `mammofed server propose`")  # fmt: skip


def propose(home: CoordinatorHome, protocol: Protocol, weights: Path) -> StudyFolder:
    """Sign a protocol and put it where its sites find it. The same again is fine.

    Raises:
        ProtocolError: a site of it is not enrolled, nobody evaluates, or another study has its name.
        WeightsError: the weights are not those that it names.
    """
    _check_members(home, protocol)
    arrays = read_arrays(weights)
    if weights_sha256(arrays) != protocol.initial_weights.sha256:
        raise WeightsError(f"{weights} holds other weights than the protocol names",
                           found=weights_sha256(arrays)[:16], expected=protocol.initial_weights.sha256[:16],
                           remedy="give the file that was made with the protocol")  # fmt: skip
    study = StudyFolder(home.study(protocol.study))
    signed = SignedProtocol.sign(protocol, name=home.settings.name, key=home.signing_key)
    if (study.path / SIGNED).exists() and Protocol.read(study.path / "protocol.json").sha256 != protocol.sha256:
        raise ProtocolError(f"a study {protocol.study} is there with another protocol",
                            remedy="what was proposed never changes: give the new protocol another name")  # fmt: skip
    make_private_folder(study.path)
    write_private(study.path / INITIAL, weights.read_bytes())
    write_private(study.path / "protocol.json", protocol.to_json().encode())
    write_private(study.path / SIGNED, signed.to_json().encode())
    if not (study.path / WANTED).exists():
        study.want(Wanted(wish=Wish.PROPOSED))
        home.record("study_proposed", study=protocol.study, protocol_sha256=protocol.sha256)
    return study


def _check_members(home: CoordinatorHome, protocol: Protocol) -> None:
    with home.registry() as registry:
        there = {m.member.site: m.member.role for m in registry.members() if m.state is MemberState.CONFIRMED}
    missing = [site.name for site in protocol.federation.sites if there.get(site.name) is not Role.SITE]
    if missing:
        raise ProtocolError(f"{protocol.study} names sites that are not enrolled", found=", ".join(missing[:8]),
                            expected="confirmed sites", remedy="`mammofed server invite`, then `enrol`")  # fmt: skip
    if Role.EVALUATOR not in there.values():
        raise ProtocolError(f"nobody would evaluate {protocol.study}", expected="an enrolled evaluator",
                            remedy="`mammofed server invite NAME --role evaluator`, and enrol it")  # fmt: skip


class Reconciler:
    """Brings about what is wanted of each study; called by the daemon every second or so.

    Args:
        patience_s: how long a study waits for its sites at its start.
        report: is told what was done: study, words.
        head: how far the coordinator's audit log reaches, for the passports of studies; None: they are made without.
    """

    def __init__(
        self, home: CoordinatorHome, link: Link, *, patience_s: float, report: Callable[[str, str], None],
        head: Callable[[], SignedHead] | None = None, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._home, self._link, self._patience_s, self._head = home, link, patience_s, head
        self._report, self._clock = report, clock
        self._next_look: dict[str, float] = {}

    def step(self) -> None:
        """Look at every study once; one that is damaged does not keep back the others.

        Raises:
            RoundError: SuperLink does not answer; try again later. Any other: of one study, after the others.
        """
        failed: Exception | None = None
        for study in studies(self._home):
            try:
                if study.wanted().wish is Wish.RUNNING and self._clock() >= self._next_look.get(study.name, 0.0):
                    self._next_look[study.name] = self._clock() + LOOK_S
                    self._advance(study)
            except RoundError:
                raise
            except Exception as error:  # the daemon says it
                failed = failed or error
        if failed is not None:
            raise failed

    def _advance(self, study: StudyFolder) -> None:
        wanted, state = study.wanted(), study.state()
        if study.busy():
            return
        if state is StudyState.COMPLETE:
            self._end(study, Wish.ENDED, "complete")
            return
        if wanted.run_id is None:
            self._submit(study, wanted)
            return
        status = self._link.run_status(int(wanted.run_id))
        if not status.ended:
            # Whoever moves the journal has the lease, so this order of looks tells a dead process from a new one.
            begun = study.mark() != wanted.mark and not study.busy()
            if begun or self._clock() - wanted.submitted > STARTING_S:  # its process died; Flower needs a minute to see
                self._link.stop(int(wanted.run_id))
                words = "was left by its process" if begun else f"did not begin in {STARTING_S:g} s"
                self._report(study.name, f"run {wanted.run_id} {words} and is given up")
            return
        if state in (StudyState.INCOMPLETE, StudyState.STOPPED) and study.mark() != wanted.mark:
            self._end(study, Wish.STOPPED, f"{state.value}: {last_reason(study)}")
            return
        failed = 0 if study.closed() > wanted.closed else wanted.failed + 1
        if failed >= MAX_FAILED:
            self._end(study, Wish.STOPPED, f"{failed} runs in a row brought it no further: {status.details}")
            return
        wait = RETRY_S[min(failed, len(RETRY_S) - 1)]
        if self._clock() - wanted.submitted >= wait:
            self._report(study.name, f"run {wanted.run_id} was lost ({status.details}); goes on in a new one")
            self._submit(study, wanted.model_copy(update={"failed": failed}))

    def _submit(self, study: StudyFolder, wanted: Wanted) -> None:
        before = {"mark": study.mark(), "closed": study.closed()}
        run_id = self._link.submit(study.path, patience_s=self._patience_s)
        study.want(wanted.model_copy(update={"run_id": str(run_id), "submitted": self._clock(), **before}))
        self._report(study.name, f"submitted as Flower run {run_id}")

    def _end(self, study: StudyFolder, wish: Wish, reason: str) -> None:
        if wish is Wish.ENDED:
            self._sign(study)
        try:
            write_report(study.path)
        except Exception as error:  # the study has ended all the same, and `mammofed report` makes its report again
            self._report(study.name, f"its report could not be written: {type(error).__name__}: {error}")
        study.want(study.wanted().model_copy(update={"wish": wish, "reason": reason[:500], "run_id": None}))
        self._report(study.name, reason)

    def _sign(self, study: StudyFolder) -> None:
        """Make the passport of a complete study; one without has ended all the same, and an exploration has none."""
        if not (study.path / MODEL).exists():
            return
        try:
            signed = write_passport(study.path, coordinator_signature(self._home, head=self._head))
        except Exception as error:
            words = f"{type(error).__name__}: {error}"
            self._report(study.name, f"its passport could not be made (`mammofed server passport`): {words}")
        else:
            self._report(study.name, f"passport {signed.sha256}")


def coordinator_signature(home: CoordinatorHome, *, head: Callable[[], SignedHead] | None) -> Signature:
    """The coordinator as it signs the passport of a study."""
    return Signature(kind="coordinator", name=home.settings.name, key=home.signing_key, head=head)


def last_reason(study: StudyFolder) -> str:
    """What the study's last end said."""
    finished = [event.text for _, event in read_events(study.journal, after=0) if event.kind == "finished"]
    return finished[-1] if finished else ""


def start(home: CoordinatorHome, name: str, *, again: bool) -> StudyFolder:
    """Want a study to run. again: it is known to have been run before (`resume`).

    Raises:
        ConfigError: there is none, it is complete, or it was (not) begun before.
    """
    study = find_study(home, name)
    wanted, state = study.wanted(), study.state()
    if state is StudyState.COMPLETE:
        raise ConfigError(f"{name} is complete", remedy=f"read {study.path / 'report.html'}")
    if wanted.wish is Wish.ENDED:
        raise ConfigError(f"{name} has ended", found=wanted.reason, remedy="propose a study under another name")
    if wanted.wish is Wish.RUNNING:
        raise ConfigError(f"{name} is running already", remedy=f"`mammofed server status {home.folder}`")
    begun = wanted.wish is not Wish.PROPOSED
    if begun != again:
        raise ConfigError(f"{name} was {'' if begun else 'not '}begun before",
                          remedy=f"`mammofed server {'resume' if begun else 'start'} HOME {name}`")  # fmt: skip
    (study.path / STOP_FILE).unlink(missing_ok=True)
    study.want(Wanted(wish=Wish.RUNNING))
    home.record("study_resumed" if again else "study_started", study=name)
    return study


def stop(home: CoordinatorHome, name: str) -> StudyFolder:
    """Want a study to stop after the round that is running.

    Raises:
        ConfigError: there is none, or it does not run.
    """
    study = find_study(home, name)
    wanted = study.wanted()
    if wanted.wish is not Wish.RUNNING:
        raise ConfigError(f"{name} does not run", found=wanted.wish.value)
    (study.path / STOP_FILE).touch()  # the round loop sees it, ends after the round, and the reconciler sees that
    if not study.busy():  # a run that was submitted and has not begun finds that it is not wanted, or the file
        study.want(wanted.model_copy(update={"wish": Wish.STOPPED, "reason": "stopped before a round was running"}))
    home.record("study_stop_asked", study=name)
    return study

