"""DICOM associations with bounds: opened by us to a PACS, or accepted by us from one; used by dimse and the outbox.

pynetdicom collects a message in memory for as long as its sender goes on sending, and reads a PDU of whatever length is
announced, up to 4 GiB. Here both are bounded: what is beyond the bound ends the association.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.presentation import PresentationContext, build_context, build_role

from client.ingest.sources.intake import Intake
from client.ingest.sources.objects import IMPLEMENTATION_NAME, IMPLEMENTATION_UID, SYNTAXES, WANTED
from client.ingest.sources.retry import LostError
from client.ingest.sources.settings import Peer
from client.ingest.sources.tls import calling_context
from shared_model.errors import SourceError

VERIFICATION = "1.2.840.10008.1.1"
MAX_PDU = 1 << 20  # what we announce as our longest PDU; peers use 16 to 128 KiB
_MAX_QUEUED = 4  # messages of one association that wait for an answer; without asynchronous operations there is one
_STORE_STATUS = {
    None: 0x0000,
    "disk": 0xA700,  # out of resources
    "too_large": 0xA700,
    "unsupported_syntax": 0xC000,
    "damaged": 0xC000,  # cannot understand
    "other_modality": 0xA900,  # data set does not match
    "not_deidentified": 0xC000,
    "unasked": 0x0124,  # not authorized
}
"""Answers to C-STORE (PS3.4 B.2.3, PS3.7 C.5), by what became of the object."""


def application(title: str, *, timeout_seconds: float) -> AE:
    """Our application entity; every wait of it is bounded."""
    entity = AE(ae_title=title)
    entity.implementation_class_uid, entity.implementation_version_name = IMPLEMENTATION_UID, IMPLEMENTATION_NAME
    entity.maximum_pdu_size = MAX_PDU
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = timeout_seconds
    entity.connection_timeout = min(timeout_seconds, 30.0)
    return entity


def storage_contexts() -> list[PresentationContext]:
    """One context for each kind of film and transfer syntax, so that an archive sends what it has, as it has it."""
    return [build_context(kind, syntax) for kind in WANTED for syntax in SYNTAXES]


@contextmanager
def association(
    peer: Peer, contexts: Sequence[PresentationContext], *, intake: Intake | None = None, max_bytes: int = 0
) -> Iterator[Any]:
    """An open association with `peer`, released at the end, or aborted after an error.

    Args:
        intake: takes films on this very association (C-GET); max_bytes: of one film.

    Raises:
        LostError: nobody answers, or it is busy. SourceError: it refuses us. ConfigError: TLS files.
    """
    entity = application(peer.calling_ae, timeout_seconds=peer.timeout_seconds)
    handlers: list[Any] = [
        (evt.EVT_CONN_OPEN, bound_messages, [max(max_bytes, MAX_PDU), intake, peer.timeout_seconds])
    ]
    extended: list[Any] = []
    if intake is not None:
        handlers.append((evt.EVT_C_STORE, take_film, [intake]))
        # As both: SCP alone would take away the role that the other services of this association need.
        extended = [build_role(kind, scu_role=True, scp_role=True) for kind in WANTED]
    tls = None
    if peer.tls is not None:
        tls = (calling_context(peer.tls), peer.tls.server_name or peer.host)
    opened = entity.associate(
        peer.host, peer.port, contexts=list(contexts), ae_title=peer.called_ae, ext_neg=extended, tls_args=tls,
        evt_handlers=handlers,
    )  # fmt: skip
    if not opened.is_established:
        raise _why_not(opened, peer)
    try:
        yield opened
    except BaseException:
        opened.abort()
        raise
    if opened.is_established:
        opened.release()


def _why_not(opened: Any, peer: Peer) -> Exception:
    """Rejections (PS3.8 9.3.4): permanent ones will not change by themselves; all else may pass."""
    where = f"{peer.host}:{peer.port}"
    if not opened.is_rejected:
        return LostError("no association: not reachable, no TLS, or no answer")
    answer = opened.acceptor.primitive
    result, source, reason = (int(getattr(answer, name, 0) or 0) for name in ("result", "result_source", "diagnostic"))
    words = {
        (1, 3): "it does not know our AE title; have it registered there",
        (1, 7): "it has another AE title; correct called_ae",
    }.get((source, reason), f"rejected with result {result}, source {source}, reason {reason}")
    if result == 2:
        return LostError(words)
    return SourceError(
        f"the PACS at {where} rejects the association", found=words, expected="an accepted association",
        remedy=f"check called_ae ({peer.called_ae}) and calling_ae ({peer.calling_ae}) with the PACS administrator",
    )  # fmt: skip


def bound_messages(event: Any, max_bytes: int, intake: Intake | None, timeout_seconds: float) -> None:
    """EVT_CONN_OPEN: ends an association that sends a longer PDU, a larger film or more films at once than it may.

    An OSError here is to pynetdicom a connection that broke, which it handles in every state (PS3.8 9.2, event 17). So
    is silence in the middle of a PDU, for which it would wait without an end.
    """
    opened = event.assoc
    transport = opened.dul.socket
    transport.socket.settimeout(timeout_seconds)
    # A request is two writes, its command and its data: with Nagle's algorithm the second waits 40 ms for an answer.
    transport.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    receive: Callable[[int], bytearray] = transport.recv

    def bounded(count: int) -> bytearray:
        message = opened.dimse.message
        if message is not None and message.data_set.tell() > max_bytes:
            uid = str(getattr(message.command_set, "AffectedSOPInstanceUID", "") or "")
            if intake is not None:
                intake.refuse(uid, "too_large")
            raise OSError("a message is too large")
        if message is not None and message.encoded_command_set.tell() > MAX_PDU:
            raise OSError("a command is too long")
        if count > MAX_PDU + 64 or opened.dimse.msg_queue.qsize() > _MAX_QUEUED:
            raise OSError("a PDU is too long, or too many messages at once")
        return receive(count)

    transport.recv = bounded


def take_film(event: Any, intake: Intake) -> int:
    """EVT_C_STORE: hands the film to the intake; the answer tells the sender what became of it."""
    request = event.request
    uid = str(request.AffectedSOPInstanceUID or "").strip(" \0")
    encoded = request.DataSet.getvalue() if request.DataSet is not None else b""
    return _STORE_STATUS[intake.take(encoded, str(event.context.transfer_syntax), film_uid=uid)]


def status_of(answer: Dataset) -> int:
    """Status of a response.

    Raises:
        LostError: pynetdicom's empty data set: aborted, silent for too long, or no valid answer.
    """
    status = answer.get("Status")
    if status is None:
        raise LostError("the association was lost, or no answer came in time")
    return int(status)


@contextmanager
def lost_when_closed() -> Iterator[None]:
    """Around calls of pynetdicom: what the peer closed a moment ago is to it a mistake of ours (RuntimeError)."""
    try:
        yield
    except RuntimeError:
        raise LostError("the association was closed by the other side") from None


def accept_films(
    *, title: str, address: str, port: int, callers: Iterable[str], intake: Intake, max_bytes: int, tls: Any,
    timeout_seconds: float,
) -> Any:  # fmt: skip
    """Start our own storage SCP; `shutdown()` on what comes back ends it.

    Args:
        callers: AE titles that may call; others are rejected. tls: an `ssl.SSLContext`, or None.

    Raises:
        SourceError: the port cannot be opened.
    """
    entity = application(title, timeout_seconds=timeout_seconds)
    entity.maximum_associations = 8
    entity.require_called_aet, entity.require_calling_aet = True, list(callers)
    entity.add_supported_context(VERIFICATION)
    for kind in WANTED:
        entity.add_supported_context(kind, list(SYNTAXES))
    try:
        return entity.start_server(
            (address, port), block=False, ssl_context=tls,
            evt_handlers=[(evt.EVT_CONN_OPEN, bound_messages, [max_bytes, intake, timeout_seconds]),
                          (evt.EVT_C_STORE, take_film, [intake])],
        )  # fmt: skip
    except OSError as error:
        raise SourceError(f"cannot listen on {address}:{port} for films: {error.strerror}",
                          remedy="choose another receive_port, or end what uses it") from None  # fmt: skip
