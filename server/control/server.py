"""Serves `ControlService` on the loopback: one gRPC server for members and a small one of its own for strangers."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final, Self

import grpc

from server.control.roll import Roll
from server.control.service import ControlService
from server.enrolment.peers import LOOPBACK, ControlUpstream, Peers
from shared_model.control import MAX_REPLY_BYTES, MAX_REQUEST_BYTES
from shared_model.enrolment import MAX_DOCUMENT_BYTES
from shared_model.errors import ConfigError, StorageError

THREADS: Final = 256  # made as they are needed. A site's watch holds one, its other calls one at most: some 100 sites
STRANGER_THREADS: Final = 8
GRACE_S: Final = 2.0
WRITE_S: Final = 1.0

log = logging.getLogger("mammofed.control")


class ControlServer:
    """Both servers; a context manager. `members` and `strangers` are where the doors connect to.

    Args:
        roll: its file is written here, at most once a second.
        threads: workers for members; a call that finds none free is refused, and tried again by the site.
    """

    def __init__(self, service: ControlService, *, peers: Peers, roll: Roll, threads: int = THREADS) -> None:
        self._service, self._roll = service, roll
        self._workers = ThreadPoolExecutor(threads, "control"), ThreadPoolExecutor(STRANGER_THREADS, "enrol")
        self.server, port = _server(service, self._workers[0], threads, MAX_REQUEST_BYTES, strangers=False)
        self.stranger_server, stranger_port = _server(service, self._workers[1], STRANGER_THREADS, MAX_DOCUMENT_BYTES,
                                                      strangers=True)  # fmt: skip
        self.members = ControlUpstream(port=port, peers=peers)
        self.strangers = ControlUpstream(port=stranger_port, peers=peers)
        self._writer = threading.Thread(target=self._write, name="roll", daemon=True)

    def __enter__(self) -> Self:
        self.server.start()
        self.stranger_server.start()
        self._writer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._service.stopping.set()
        for ending in [one.stop(GRACE_S) for one in (self.server, self.stranger_server)]:
            ending.wait(2 * GRACE_S)
        for workers in self._workers:
            workers.shutdown(wait=False)
        self._writer.join(2 * GRACE_S)

    def _write(self) -> None:
        over = False
        while not over:
            over = self._service.stopping.wait(WRITE_S)
            try:
                self._roll.write()
            except StorageError as error:
                log.error("%s", error)


def _server(
    service: ControlService, workers: ThreadPoolExecutor, threads: int, largest: int, *, strangers: bool
) -> tuple[Any, int]:
    options = [
        ("grpc.so_reuseport", 0),  # else another process of this user could listen on the same port
        ("grpc.max_receive_message_length", largest), ("grpc.max_send_message_length", MAX_REPLY_BYTES),
        ("grpc.max_concurrent_streams", 8), ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 5000),
    ]  # fmt: skip
    server = grpc.server(workers, options=options, maximum_concurrent_rpcs=threads)
    server.add_generic_rpc_handlers((service.handlers(strangers=strangers),))
    try:
        port = server.add_insecure_port(f"{LOOPBACK}:0")
    except RuntimeError:
        raise ConfigError("the control service finds no free port on the loopback") from None
    return server, int(port)
