"""Our storage port and our calls against peers that misbehave: strangers, pushes, endless messages, silence."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID
from pynetdicom import AE, evt
from pynetdicom.presentation import build_context

from client.ingest.sources import DimseSource, Received
from client.ingest.sources.associations import (
    MAX_PDU,
    VERIFICATION,
    accept_films,
    association,
    lost_when_closed,
    storage_contexts,
)
from client.ingest.sources.intake import Intake
from client.ingest.sources.objects import FOR_PRESENTATION, SYNTAXES, WANTED
from client.ingest.sources.quiet import quiet_network
from client.ingest.sources.retry import Backoff, LostError
from client.ingest.sources.settings import Peer
from shared_model.errors import SourceError
from tests.enrolled import HANG_S
from tests.pacs_films import PERIOD, HashingDeidentifier, film
from tests.ports import free_port

uid = HashingDeidentifier().uid
EXPLICIT = "1.2.840.10008.1.2.1"


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    with quiet_network():
        yield


@contextmanager
def listening(intake: Intake, *, timeout_seconds: float = 600.0) -> Iterator[int]:
    """Where our storage SCP listens, for callers named PACS and films of 100 KB."""
    running = accept_films(title="MAMMOFED", address="127.0.0.1", port=0, callers=["PACS"], intake=intake,
                           max_bytes=100_000, tls=None, timeout_seconds=timeout_seconds)  # fmt: skip
    try:
        yield int(running.server_address[1])
    finally:
        running.shutdown()


@pytest.fixture
def port(intake: Intake) -> Iterator[int]:
    with listening(intake) as number:
        yield number


def call(
    port: int, title: str = "PACS", to: str = "MAMMOFED", *, syntax: str = EXPLICIT, kind: str = FOR_PRESENTATION
) -> Any:
    entity = AE(title)
    entity.add_requested_context(kind, syntax)
    entity.add_requested_context(VERIFICATION)
    return entity.associate("127.0.0.1", port, ae_title=to)


def sent(ds: Dataset, syntax: str = EXPLICIT) -> Dataset:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    return ds


def store(opened: Any, ds: Dataset) -> int | None:
    status = opened.send_c_store(sent(ds)).get("Status")
    return None if status is None else int(status)


def test_films_that_were_asked_for_are_taken_and_others_are_not(port: int, intake: Intake, store_: Received) -> None:
    ds, other = film(1, "L_CC"), film(2, "L_CC")
    intake.ask(uid(ds.StudyInstanceUID), [uid(ds.SOPInstanceUID)])
    opened = call(port)
    assert opened.send_c_echo().Status == 0
    assert [store(opened, one) for one in (ds, other, ds)] == [0x0000, 0x0124, 0x0000]
    opened.release()
    assert len(store_.paths()) == 1


@pytest.fixture
def store_(intake: Intake) -> Received:
    return intake._store


@pytest.mark.parametrize(("title", "to"), [("STRANGER", "MAMMOFED"), ("PACS", "SOMEBODY")])
def test_strangers_are_turned_away(port: int, title: str, to: str) -> None:
    assert call(port, title, to).is_rejected


def test_other_kinds_and_syntaxes_find_no_context(port: int) -> None:
    for kind, syntax in (("1.2.840.10008.5.1.4.1.1.2", EXPLICIT), (FOR_PRESENTATION, "1.2.840.10008.1.2.1.99"),
                         (FOR_PRESENTATION, "1.2.840.10008.1.2.4.50")):  # fmt: skip
        opened = call(port, kind=kind, syntax=syntax)
        assert {str(context.abstract_syntax) for context in opened.accepted_contexts} == {VERIFICATION}
        opened.release()
    for syntax in SYNTAXES:
        opened = call(port, syntax=syntax)
        assert len(opened.accepted_contexts) == 2
        opened.release()


def test_a_film_beyond_the_limit_ends_the_association_and_has_its_reason(
    port: int, intake: Intake, store_: Received
) -> None:
    ds, large = film(1, "L_CC"), film(1, "R_CC")
    large.PixelData = b"\0" * (8 << 20)
    intake.ask(uid(ds.StudyInstanceUID), [uid(ds.SOPInstanceUID), uid(large.SOPInstanceUID)])
    assert store(call(port), large) is None
    opened = call(port)
    assert store(opened, ds) == 0
    opened.release()
    assert intake.outcome() == ({uid(ds.SOPInstanceUID)}, {uid(large.SOPInstanceUID): "too_large"})


def test_a_damaged_film_is_answered_and_the_next_is_taken(port: int, intake: Intake) -> None:
    ds, odd = film(1, "L_CC"), film(1, "R_CC", Modality="CT")
    intake.ask(uid(ds.StudyInstanceUID), [uid(ds.SOPInstanceUID), uid(odd.SOPInstanceUID)])
    opened = call(port)
    assert [store(opened, odd), store(opened, ds)] == [0xA900, 0]
    opened.release()


def test_a_pdu_of_four_gigabytes_is_not_read(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.settimeout(HANG_S)  # much less than a silent peer is waited for: it is the length that ends it
        try:
            peer.sendall(struct.pack(">BBL", 4, 0, 0xFFFFFFFF) + b"x" * 100_000)
            while peer.recv(4096):
                pass
        except (ConnectionResetError, BrokenPipeError):
            pass
    assert MAX_PDU < 1 << 24


def test_silence_in_the_middle_of_a_pdu_is_not_waited_for_without_an_end(intake: Intake) -> None:
    with listening(intake, timeout_seconds=5.0) as port:
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.settimeout(HANG_S)
            peer.sendall(struct.pack(">BBL", 1, 0, 200) + b"x" * 10)
            assert peer.recv(4096) == b""
        opened = call(port)
        assert opened.is_established
        opened.release()


def test_a_port_that_is_taken_is_said(port: int, intake: Intake) -> None:
    with pytest.raises(SourceError, match="cannot listen"):
        accept_films(title="A", address="127.0.0.1", port=port, callers=["B"], intake=intake, max_bytes=1, tls=None,
                     timeout_seconds=1.0)  # fmt: skip


# --- our calls ---


def peer(port: int, **changes: Any) -> Peer:
    return Peer(**{"host": "127.0.0.1", "port": port, "called_ae": "PACS", "timeout_seconds": HANG_S, **changes})


def serve(contexts: list[str], *handlers: Any, title: str = "PACS", **settings: Any) -> tuple[Any, int]:
    entity = AE(title)
    for name, value in settings.items():
        setattr(entity, name, value)
    for kind in contexts:
        entity.add_supported_context(kind)
    running = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=list(handlers))
    return running, running.server_address[1]


def test_a_loss_is_lost_and_a_rejection_is_final() -> None:
    with pytest.raises(LostError), association(peer(free_port()), storage_contexts()):
        pass
    running, port = serve([VERIFICATION], require_called_aet=True)
    try:
        wrong = association(peer(port, called_ae="X"), storage_contexts())
        with pytest.raises(SourceError, match="another AE title"), wrong:
            pass
    finally:
        running.shutdown()
    running, port = serve([VERIFICATION], require_calling_aet=["FRIEND"])
    try:
        with pytest.raises(SourceError, match="registered"), association(peer(port), storage_contexts()):
            pass
    finally:
        running.shutdown()
    running, port = serve([VERIFICATION], maximum_associations=0)
    try:
        with pytest.raises(LostError), association(peer(port), storage_contexts()):  # it is busy: that passes
            pass
    finally:
        running.shutdown()


def test_an_association_that_the_peer_closed_a_moment_ago_is_lost() -> None:
    running, port = serve([VERIFICATION])
    try:
        with association(peer(port), [build_context(VERIFICATION)]) as opened:
            opened.abort()
            with pytest.raises(LostError, match="closed"), lost_when_closed():
                opened.send_c_echo()
    finally:
        running.shutdown()


def test_contexts_fit_into_one_association() -> None:
    assert len(storage_contexts()) == len(WANTED) * len(SYNTAXES) <= 120
    assert all(len(context.transfer_syntax) == 1 for context in storage_contexts())


def source(port: int, **changes: Any) -> DimseSource:
    return DimseSource(**{"host": "127.0.0.1", "port": port, "called_ae": "PACS", "retrieve": "get", "retries": 0,
                          "quiet_seconds": 0, "timeout_seconds": HANG_S, "studies": PERIOD, **changes})  # fmt: skip


def test_a_pacs_without_query_or_retrieve_is_said(store_: Received) -> None:
    running, port = serve([VERIFICATION])
    try:
        with pytest.raises(SourceError, match="does not permit C-FIND"):
            source(port).collect(store_, HashingDeidentifier())
    finally:
        running.shutdown()


@pytest.mark.parametrize("status", [0xC000, 0xA900, 0x0122])
def test_a_query_that_fails_is_tried_again_and_then_said(store_: Received, status: int) -> None:
    calls: list[int] = []

    def fail(event: Any) -> Iterator[Any]:
        calls.append(1)
        yield status, None

    running, port = serve([VERIFICATION, "1.2.840.10008.5.1.4.1.2.2.1"], (evt.EVT_C_FIND, fail))
    try:
        with pytest.raises(SourceError, match=f"0x{status:04X}"):
            source(port).collect(store_, HashingDeidentifier(), backoff=Backoff(2, first_seconds=0.01))
        assert len(calls) == 3
    finally:
        running.shutdown()


def test_a_pacs_that_falls_silent_is_given_up(store_: Received) -> None:
    release = threading.Event()

    def hang(event: Any) -> Iterator[Any]:
        release.wait(2 * HANG_S)
        yield 0x0000, None

    running, port = serve([VERIFICATION, "1.2.840.10008.5.1.4.1.2.2.1"], (evt.EVT_C_FIND, hang))
    try:
        with pytest.raises(SourceError, match="in time"):
            source(port, timeout_seconds=2).collect(store_, HashingDeidentifier(), backoff=Backoff(0))
        assert not release.is_set() and running.active_associations, "it was given up before the PACS spoke"
    finally:
        release.set()
        running.shutdown()


def test_odd_answers_of_a_pacs_do_no_harm(store_: Received) -> None:
    """UIDs that are none, elements of the wrong kind, series of other modalities, answers without data."""

    def answer(event: Any) -> Iterator[Any]:
        level, query = event.identifier.QueryRetrieveLevel, event.identifier
        for value in ("", "../../etc", "1.2\\1.3", "9.8.7.6.1.0"):
            found = Dataset()
            found.QueryRetrieveLevel = level
            found.StudyInstanceUID = value if level == "STUDY" else query.StudyInstanceUID
            if level != "STUDY":
                found.SeriesInstanceUID, found.Modality = value, "CT" if value.startswith("1") else "MG"
            if level == "IMAGE":
                found.SOPInstanceUID, found.SOPClassUID = value, "1.2.840.10008.5.1.4.1.1.13.1.3"
            yield 0xFF00, found
        yield 0x0000, None

    running, port = serve([VERIFICATION, "1.2.840.10008.5.1.4.1.2.2.1"], (evt.EVT_C_FIND, answer))
    try:
        got = source(port).collect(store_, HashingDeidentifier())
        # Of the studies one cannot be asked for; of the series of the other two, one is taken, with its three films.
        assert (got.studies, got.incomplete, got.new) == (3, 1, 0)
        assert (got.left_out, got.failed) == ({"tomosynthesis": 4}, {"damaged": 2})
    finally:
        running.shutdown()
