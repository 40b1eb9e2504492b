"""Drives a secure sum over the nodes of a study, stage by stage; for the round loop and whoever else sums something.

The coordinator is `shared_model.secagg.Server`; this file asks the sites, and keeps the half-done sum on the disk: each
stage is closed there before anybody is told of it, so that a coordinator that died goes on with the very sum it had.
Sites answer a repeated step with the same bytes. Whoever does not answer a stage has fallen out; below the threshold
the sum ends, and nothing of it can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from server.aggregation.flower import Answer, Exchange
from shared_model.errors import MammoFedError, QuorumError, RoundError, StorageError
from shared_model.messages import MASKED, ErrorReply, Frame, SecureSumReply, SecureSumRequest, SumStep
from shared_model.private_files import make_private_folder, read_private, write_private
from shared_model.secagg import SecureSum, Server, Session, Stage
from shared_model.secagg.kept import MAX_KEPT_BYTES
from shared_model.secagg.session import MAX_WORDS
from shared_model.signing import SigningKey

STEPS: Final[Mapping[Stage, SumStep]] = {
    Stage.KEYS: "keys", Stage.SHARES: "share", Stage.MASKED: "mask", Stage.STATEMENTS: "confirm",
    Stage.UNMASKING: "unmask",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SumPlan:
    """One sum to be made.

    asked: by site, the attempt number of the training request whose update is summed; empty where it is no update.
    least: fewest sites in a sum that is opened; the library's own threshold holds as well.
    tries: how often a stage is asked while it is below the threshold.
    """

    terms: Session
    asked: Mapping[str, int] = field(default_factory=dict)
    least: int = 3
    tries: int = 2
    deadline_s: float


@dataclass(frozen=True, kw_only=True)
class SumOutcome:
    """What became of a sum.

    found: the sum over `found.survivors`; None when it failed, with `fault` in words. lost: why each other site is not
    in it. opened: whether a site may have helped to unmask: then its values can be in no other sum, and this one is
    gone on with. spent: it was opened and can come to nothing any more. traffic: bytes from and to each site. seconds:
    of each site that answered, what its steps took there, as it says, and what their round trips took.
    """

    found: SecureSum | None
    fault: str
    lost: Mapping[str, str]
    opened: bool
    spent: bool
    traffic: Mapping[str, tuple[int, int]]
    seconds: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def run_secure_sum(
    exchange: Exchange, plan: SumPlan, *, signing: SigningKey, nodes: Mapping[str, int], keep: Path
) -> SumOutcome:
    """Make or go on with one sum; a sum that is done is answered from the disk.

    Args:
        nodes: of the sites that are there now.
        keep: file of the half-done sum, for its owner alone. One that is there is gone on with: then the plan's terms
            are those of :func:`kept_terms`.

    Raises:
        StorageError: the file cannot be written, is damaged, or is of another sum.
    """
    return _Run(exchange, plan, signing, nodes, keep).run()


def kept_terms(keep: Path, *, signing: SigningKey) -> Session | None:
    """The terms of the half-done sum that is kept there, whose peers were told already; None when there is none.

    Raises:
        StorageError: it is damaged.
    """
    return _read(keep, signing).session if keep.exists() else None


def is_opened(keep: Path, *, signing: SigningKey) -> bool:
    """Whether sites may have helped to unmask the sum that is kept there.

    Raises:
        StorageError: it is damaged.
    """
    return keep.exists() and _read(keep, signing).stage is Stage.UNMASKING


class _Run:
    def __init__(
        self, exchange: Exchange, plan: SumPlan, signing: SigningKey, nodes: Mapping[str, int], keep: Path
    ) -> None:
        self._exchange, self._plan, self._nodes, self._keep = exchange, plan, nodes, keep
        self._server = _opened(keep, plan.terms, signing)
        self._lost: dict[str, str] = {}
        self._traffic: dict[str, tuple[int, int]] = {}
        self._seconds: dict[str, tuple[float, float]] = {}

    def run(self) -> SumOutcome:
        found, fault, spent = None, "", False
        try:
            for stage in Stage:
                if stage >= self._server.stage:
                    self._play(stage)
            found = self._server.result()
        except QuorumError as error:
            fault = str(error)
        except RoundError as error:
            fault, spent = str(error), True
        lost = {} if found is None else {site: self._reason(site) for site in self._out_of(found)}
        return SumOutcome(
            found=found, fault=fault, lost=lost if found is not None else dict(self._lost),
            opened=self._server.stage is Stage.UNMASKING, spent=spent, traffic=self._traffic,
            seconds=self._seconds,
        )  # fmt: skip

    def _out_of(self, found: SecureSum) -> list[str]:
        return [site for site in self._server.session.sites if site not in found.survivors]

    def _reason(self, site: str) -> str:
        return self._lost.get(site, "it had fallen out before the coordinator was started again")

    def _play(self, stage: Stage) -> None:
        """Close the stage before, tell those who are in this one, take what they answer."""
        documents = self._documents(stage)
        self._save()
        for _ in range(self._plan.tries):
            heard = set(self._server.heard(stage))
            waiting = {site: body for site, body in documents.items() if site not in heard}
            if waiting:
                self._ask(stage, waiting)
            if len(self._server.heard(stage)) >= max(self._server.session.threshold, self._least(stage)):
                break
        if stage is Stage.UNMASKING:
            self._save()

    def _least(self, stage: Stage) -> int:
        return self._plan.least if stage <= Stage.MASKED else 0

    def _documents(self, stage: Stage) -> dict[str, bytes]:
        """What each site is told in a stage, which closes the one before.

        Raises:
            QuorumError: too few are left.
        """
        server = self._server
        if stage is Stage.KEYS:
            return dict.fromkeys(server.session.sites, server.opening())
        before = server.heard(Stage(stage - 1))
        if server.stage < stage and len(before) < self._least(Stage(stage - 1)):
            raise QuorumError("too few sites for the secure sum; nothing was revealed", found=len(before),
                              expected=f"at least {self._plan.least}")  # fmt: skip
        if stage is Stage.MASKED:
            return server.deliveries()
        close: Mapping[Stage, Callable[[], bytes]] = {
            Stage.SHARES: server.directory, Stage.STATEMENTS: server.survivors, Stage.UNMASKING: server.statements,
        }  # fmt: skip
        return dict.fromkeys(before, close[stage]())

    def _ask(self, stage: Stage, documents: Mapping[str, bytes]) -> None:
        frames = {site: Frame(self._request(stage, site, body)) for site, body in documents.items()}
        here = {self._nodes[site]: frame for site, frame in frames.items() if site in self._nodes}
        answers = self._exchange.ask(here, timeout_s=self._plan.deadline_s)
        for site in frames:
            answer = answers.get(self._nodes.get(site, -1))
            fault = "absent: no node stands for this site" if answer is None else self._take(stage, site, answer)
            if fault:
                self._lost[site] = f"{STEPS[stage]}: {fault}"
            else:
                self._lost.pop(site, None)

    def _request(self, stage: Stage, site: str, body: bytes) -> SecureSumRequest:
        terms = self._server.session
        return SecureSumRequest.carrying(
            body, study=terms.study, protocol_sha256=terms.protocol_sha256, what=terms.what, round=terms.round,
            attempt=terms.attempt, asked=self._plan.asked.get(site, 0), step=STEPS[stage],
        )  # fmt: skip

    def _take(self, stage: Stage, site: str, answer: Answer) -> str:
        """Hand one answer to the server; why it does not count, empty when it does."""
        up, down = self._traffic.get(site, (0, 0))
        self._traffic[site] = up + answer.bytes_up, down + answer.bytes_down
        if answer.frame is None:
            return f"{answer.failure}: {answer.detail}"
        reply, terms = answer.frame.message, self._server.session
        if isinstance(reply, ErrorReply):
            return f"code {reply.code}: {reply.reason}"
        expected = (site, terms.study, terms.what, terms.round, terms.attempt, STEPS[stage])
        if not isinstance(reply, SecureSumReply) or expected != (
            reply.site, reply.study, reply.what, reply.round, reply.attempt, reply.step
        ):  # fmt: skip
            return "identity: the reply is for another sum, site or step"
        own, trips = self._seconds.get(site, (0.0, 0.0))
        self._seconds[site] = own + reply.seconds, trips + (answer.seconds or 0.0)
        try:
            self._hand_over(stage, reply.document.encode(), answer.frame)
        except MammoFedError as error:
            return f"refused: {error}"
        return ""

    def _hand_over(self, stage: Stage, document: bytes, frame: Frame) -> None:
        server = self._server
        if stage is Stage.MASKED:
            words = frame.arrays.get(MASKED)
            server.take_masked(document, b"" if words is None else np.ascontiguousarray(words).tobytes())
            return
        take = {Stage.KEYS: server.take_keys, Stage.SHARES: server.take_shares,
                Stage.STATEMENTS: server.take_statement, Stage.UNMASKING: server.take_unmasking}  # fmt: skip
        take[stage](document)

    def _save(self) -> None:
        make_private_folder(self._keep.parent)
        write_private(self._keep, self._server.to_bytes())


def _opened(keep: Path, terms: Session, signing: SigningKey) -> Server:
    if not keep.exists():
        return Server(terms, signing)
    server = _read(keep, signing)
    if server.session != terms:
        raise StorageError(f"{keep} is of another secure sum", found=server.session.digest[:12],
                           expected=terms.digest[:12], remedy="restore the run directory from its backup")  # fmt: skip
    return server


def _read(keep: Path, signing: SigningKey) -> Server:
    return Server.from_bytes(read_private(keep, limit=MAX_KEPT_BYTES + 4 * MAX_WORDS), signing=signing)
