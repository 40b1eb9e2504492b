"""The RPCs of `mammofed.Control`: who may call what, and the answers; served by `server.control.server`.

Every call goes through one place (`ControlService._guarded`): the caller is whom a door entered for the source port of
this connection, the registry is asked again, calls of one site at one time are few, and what is no document is refused.
An unknown connection gets nothing from any RPC; a stranger gets `Enrol`, and members all the others.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeVar

import grpc

from server.control.board import Board, for_member
from server.control.roll import Roll
from server.control.witness import Witness
from server.enrolment.enrolment import Enrolment
from server.enrolment.peers import Peers, port_of
from server.enrolment.registry import Admitted, MemberState, Registry
from shared_model.certificates import Role
from shared_model.control import (
    AHEAD_S,
    BEHIND_S,
    COURIER_BEHIND_S,
    MAX_REFUSAL_BYTES,
    SERVICE,
    WATCHING,
    BeatReply,
    BeatRequest,
    Document,
    DocumentsReply,
    DocumentsRequest,
    LeaveReply,
    LeaveRequest,
    MemberKey,
    Refusal,
    WatchRequest,
    plain,
)  # fmt: skip
from shared_model.enrolment import EnrolRequest, RenewRequest, decode
from shared_model.errors import CertificateError, ControlError, EnrolmentError, MammoFedError, StorageError

REPLY_BYTES: Final = 4 << 20  # of signed protocols in one reply; the site asks again for the rest
_D = TypeVar("_D", bound=Document)

log = logging.getLogger("mammofed.control")


@dataclass(frozen=True, kw_only=True)
class ControlLimits:
    """Bounds; seconds, counts."""

    calls_per_site: int = 6
    watches_per_site: int = 2
    strangers: int = 4
    """Enrolments at one time, all strangers together."""
    look_s: float = 1.0
    """Between looks of a watch at the board and the registry."""


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who calls. certificate: DER; empty, with `admitted` None, for a stranger at the door for enrolment."""

    certificate: bytes = b""
    admitted: Admitted | None = None

    @property
    def site(self) -> str:
        return self.admitted.member.site if self.admitted else ""


class ControlService:
    """The RPCs.

    Args:
        enrolment: answers `Enrol` and `Renew`, with the registry that admits.
        board: the studies.
        clock: the coordinator's, seconds since 1970; sites' clocks are compared with it.
        left: is told, after the answer is out, who has left and why in their words; the daemon revokes them.
    """

    def __init__(
        self, *, peers: Peers, registry: Registry, enrolment: Enrolment, board: Board, witness: Witness, roll: Roll,
        release: str, clock: Callable[[], float] = time.time, limits: ControlLimits | None = None,
        left: Callable[[str, str], None] = lambda site, reason: None,
    ) -> None:  # fmt: skip
        self._peers, self._registry, self._enrolment, self._board = peers, registry, enrolment, board
        self._witness, self._roll, self._release, self._clock = witness, roll, release, clock
        self._limits, self._left = limits or ControlLimits(), left
        self._lock, self._calls, self._watches = threading.Lock(), Counter[str](), Counter[str]()
        self.stopping = threading.Event()

    def handlers(self, *, strangers: bool) -> Any:
        """The generic handler of one gRPC server: of the strangers' one, or of the members'."""
        if strangers:
            table = {"Enrol": grpc.unary_unary_rpc_method_handler(self._unary(self._enrol, strangers=True))}
        else:
            unary = {"Renew": self._renew, "Documents": self._documents, "Beat": self._beat, "Leave": self._leave}
            table = {name: grpc.unary_unary_rpc_method_handler(self._unary(answer)) for name, answer in unary.items()}
            table["Watch"] = grpc.unary_stream_rpc_method_handler(self._watch)
        return grpc.method_handlers_generic_handler(SERVICE, table)

    # --- who calls ---

    def _caller(self, context: Any, *, strangers: bool) -> Caller:
        """Who is at the other end of the connection, and is admitted at this moment.

        Raises:
            ControlError: not through one of our doors, or through the wrong one. CertificateError: no longer admitted.
        """
        port = port_of(context.peer())
        peer = None if port is None else self._peers.at(port)
        if peer is None:
            raise ControlError("the control service is reached through the coordinator's gateway alone",
                               reason="unknown_peer", remedy="connect to the gateway's address")  # fmt: skip
        if strangers != (peer.certificate == b""):
            raise ControlError("this call is not for this door", reason="wrong_door",
                               remedy="enrol at the door for enrolment, and use the other for all else")  # fmt: skip
        if strangers:
            return Caller()
        return Caller(certificate=peer.certificate, admitted=self._registry.admit(peer.certificate))

    @contextmanager
    def _counted(self, counter: Counter[str], name: str, most: int) -> Iterator[None]:
        with self._lock:
            if counter[name] >= most:
                raise ControlError("too many calls at one time", reason="busy", expected=f"at most {most}",
                                   remedy="try again; end a second courier if one is running")  # fmt: skip
            counter[name] += 1
        try:
            yield
        finally:
            with self._lock:
                counter[name] -= 1

    @contextmanager
    def _guarded(self, context: Any, *, strangers: bool, watch: bool = False) -> Iterator[Caller]:
        """The one way into every RPC; what goes wrong inside is told as a `Refusal`, and nothing else is."""
        limits = self._limits
        most = limits.strangers if strangers else limits.watches_per_site if watch else limits.calls_per_site
        try:
            caller = self._caller(context, strangers=strangers)
            with self._counted(self._watches if watch else self._calls, caller.site, most):
                yield caller
        except MammoFedError as error:
            _refuse(context, error)
        except Exception:
            if not context.is_active():  # the other end has gone; gRPC ends handlers by exceptions
                raise
            log.exception("a call failed")
            _refuse(context, ControlError("the coordinator failed on this call", reason="failed",
                                          remedy="try again; if it stays, call the coordinator"))  # fmt: skip

    def _unary(self, answer: Callable[[Caller, bytes, Any], bytes], *, strangers: bool = False) -> Any:
        def handle(data: bytes, context: Any) -> bytes:
            with self._guarded(context, strangers=strangers) as caller:
                return answer(caller, data, context)
            raise AssertionError("refused calls end by an exception")

        return handle

    # --- the calls ---

    def _enrol(self, caller: Caller, data: bytes, context: Any) -> bytes:
        decode(data, EnrolRequest)
        return self._enrolment.answer(data)

    def _renew(self, caller: Caller, data: bytes, context: Any) -> bytes:
        decode(data, RenewRequest)
        return self._enrolment.answer(data, peer=caller.certificate)

    def _documents(self, caller: Caller, data: bytes, context: Any) -> bytes:
        assert caller.admitted is not None
        have = set(DocumentsRequest.decode(data).have)
        proposals = self._board.proposals(caller.admitted.member)
        files: list[bytes] = []
        for proposal in proposals:
            if proposal.sha256 in have:
                continue
            if files and sum(map(len, files)) + len(proposal.file) > REPLY_BYTES:
                break
            files.append(proposal.file)
        named = set().union(*(proposal.sites for proposal in proposals)) - {caller.site}
        signs = self._roll.present()
        trainers = {site: sign.trainer.key for site, sign in signs.items()}
        others = [MemberKey(site=there.member.site, role=there.member.role, node=there.node,
                            trainer=trainers.get(there.member.site))
                  for there in self._registry.members()
                  if there.state is MemberState.CONFIRMED
                  and (there.member.site in named or (named and there.member.role is Role.EVALUATOR))
                  and there.member.site != caller.site]  # fmt: skip
        offered = tuple(dict.fromkeys(proposal.sha256 for proposal in proposals))
        return DocumentsReply(offered=offered, protocols=tuple(files), members=tuple(others)).encode()

    def _beat(self, caller: Caller, data: bytes, context: Any) -> bytes:
        assert caller.admitted is not None
        beat, member = BeatRequest.decode(data), caller.admitted.member
        wrong = _clock_error(beat.time - self._clock())
        offered = {proposal.sha256 for proposal in self._board.proposals(member)}
        self._roll.seen(member, beat, offered=offered, words=str(wrong) if wrong else "")
        if wrong is not None:
            raise wrong
        answers, notices = self._witness.exchange(member, caller.admitted.node, beat.logs)
        behind = self._clock() - beat.time
        if behind > COURIER_BEHIND_S:  # what a slow line adds is no reason to refuse, and seldom so much
            notices.append(f"this site's clock seems to be {behind:.0f} s behind; from {COURIER_BEHIND_S:g} s on its "
                           "courier hands no round on: set it by NTP")  # fmt: skip
        if beat.release != self._release:
            notices.append(f"this site has release {plain(beat.release)}, the coordinator {self._release}; "
                           "install the same at both ends")  # fmt: skip
        return BeatReply(time=self._clock(), release=self._release, logs=answers, notices=tuple(notices)).encode()

    def _leave(self, caller: Caller, data: bytes, context: Any) -> bytes:
        reason = plain(LeaveRequest.decode(data).reason)
        site = caller.site
        context.add_callback(lambda: self._gone(site, reason))
        return LeaveReply().encode()

    def _gone(self, site: str, reason: str) -> None:
        self._roll.forget(site)
        try:
            self._left(site, reason)
        except (EnrolmentError, StorageError):
            log.exception("%s left, which could not be put on record", site)

    def _watch(self, data: bytes, context: Any) -> Iterator[bytes]:
        over = threading.Event()
        context.add_callback(over.set)
        with self._guarded(context, strangers=False, watch=True) as caller:
            context.send_initial_metadata((WATCHING,))  # that it is let in; the first event may be hours away
            after = dict(WatchRequest.decode(data).after)
            while not over.is_set() and not self.stopping.is_set():
                assert caller.admitted is not None
                if self._registry.admit(caller.certificate).node != caller.admitted.node:
                    raise CertificateError("another node key by now", reason="superseded")
                for proposal in self._board.proposals(caller.admitted.member):
                    for number, event in self._board.events(proposal.study, after.get(proposal.study, 0)):
                        after[proposal.study] = number
                        yield for_member(proposal, number, event, caller.admitted.member).encode()
                over.wait(self._limits.look_s)


def _clock_error(ahead: float) -> ControlError | None:
    """Why a clock will not do. ahead: the site's less ours, in seconds; a request's way makes it a little smaller."""
    if -BEHIND_S <= ahead <= AHEAD_S:
        return None
    found = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the coordinator's"
    return ControlError("this site's clock is wrong", reason="clock", found=found,
                        expected=f"at most {AHEAD_S:g} s ahead and {BEHIND_S:g} s behind",
                        remedy="set it by NTP (timedatectl set-ntp true); Flower refuses signatures that seem to come "
                        "from the future")  # fmt: skip


_CODES = {
    "control": grpc.StatusCode.FAILED_PRECONDITION, "certificate": grpc.StatusCode.PERMISSION_DENIED,
    "enrolment": grpc.StatusCode.FAILED_PRECONDITION, "storage": grpc.StatusCode.UNAVAILABLE,
}  # fmt: skip
_REASONS = {
    "unknown_peer": grpc.StatusCode.UNAUTHENTICATED, "wrong_door": grpc.StatusCode.PERMISSION_DENIED,
    "busy": grpc.StatusCode.RESOURCE_EXHAUSTED, "not_a_document": grpc.StatusCode.INVALID_ARGUMENT,
    "failed": grpc.StatusCode.INTERNAL,
}  # fmt: skip


def _refuse(context: Any, error: MammoFedError) -> NoReturn:
    refusal = Refusal.of(error)
    details = refusal.encode()
    if len(details) > MAX_REFUSAL_BYTES:
        details = refusal.model_copy(update={"found": None, "expected": None}).encode()
    context.abort(_REASONS.get(refusal.reason, _CODES[refusal.kind]), details.decode())
    raise AssertionError("abort raises")
