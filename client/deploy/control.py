"""The site's end of the control service: gRPC through a tunnel of its own; called by presence, `site leave` and doctor.

    with ControlLine(identity) as line:
        reply = line.client.beat(request)

gRPC knows neither our certificates nor the hospital's proxy: it talks in the clear to a Unix socket in a folder that
only this user can enter, and the tunnel behind it does the rest. A refusal comes back as the error that it was.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import grpc

from client.deploy.identity import SiteIdentity
from client.deploy.proxy import Proxy
from client.deploy.tunnel import Tunnel, TunnelLimits, TunnelStatus
from shared_model.certificates import CONTROL_ALPN, REFUSALS
from shared_model.control import (
    MAX_REPLY_BYTES,
    MAX_REQUEST_BYTES,
    SERVICE,
    WATCHING,
    BeatReply,
    BeatRequest,
    DocumentsReply,
    DocumentsRequest,
    LeaveReply,
    LeaveRequest,
    Refusal,
    StudyEvent,
    WatchRequest,
)  # fmt: skip
from shared_model.errors import CertificateError, ControlError, MammoFedError

CALL_S: Final = 20.0
START_S: Final = 10.0
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_REPLY_BYTES + (1 << 20)),
    ("grpc.max_send_message_length", MAX_REQUEST_BYTES),
    ("grpc.enable_http_proxy", 0),  # the tunnel knows the hospital's proxy, gRPC is not to look for one
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),  # whether a call is repeated is decided here
    ("grpc.keepalive_time_ms", 20_000), ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1), ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 500), ("grpc.min_reconnect_backoff_ms", 2000),
    ("grpc.max_reconnect_backoff_ms", 5000),
)  # fmt: skip


class ControlClient:
    """Calls of the control service; safe between threads.

    Args:
        socket: of the tunnel.
        status: how the line is, for the words of a connection that failed.
    """

    def __init__(self, socket: Path, *, status: Callable[[], TunnelStatus]) -> None:
        self._address, self._status, self._lock = f"unix:{socket}", status, threading.Lock()
        self._channel: Any = None

    def enrol(self, request: bytes, *, timeout: float = CALL_S) -> bytes:
        """Send a document of `SiteIdentity.request` to the door for enrolment; its answer is for `accept`.

        Raises (this and all others):
            MammoFedError: refused, as the coordinator says it; `ControlError` where it could not be reached.
        """
        return self._unary("Enrol", request, timeout)

    def renew(self, request: bytes, *, timeout: float = CALL_S) -> bytes:
        """Send a request for the next certificate."""
        return self._unary("Renew", request, timeout)

    def documents(self, request: DocumentsRequest, *, timeout: float = CALL_S) -> DocumentsReply:
        """Protocols that name this site. Their signatures are the caller's to check."""
        return DocumentsReply.decode(self._unary("Documents", request.encode(), timeout))

    def beat(self, request: BeatRequest, *, timeout: float = CALL_S) -> BeatReply:
        """A sign of life."""
        return BeatReply.decode(self._unary("Beat", request.encode(), timeout))

    def leave(self, request: LeaveRequest, *, timeout: float = CALL_S) -> LeaveReply:
        """Say goodbye; the coordinator lets this certificate in no more."""
        return LeaveReply.decode(self._unary("Leave", request.encode(), timeout))

    def watch(
        self, request: WatchRequest, *, stop: threading.Event | None = None, opened: Callable[[], None] | None = None
    ) -> Iterator[StudyEvent]:
        """Events as they come, until the line ends (an error) or :meth:`reset` is called from another thread.

        opened: told once, when the coordinator has let this call in; the first event may be hours away.
        """
        try:
            call = self._open().unary_stream(f"/{SERVICE}/Watch")(request.encode())
        except ValueError:  # the channel was closed by another thread
            raise _no_connection("the line was closed") from None
        try:
            # Waits until the call is let in, or is over; what is refused has no such metadata.
            if WATCHING in map(tuple, call.initial_metadata() or ()) and opened is not None:
                opened()
            for data in call:
                yield StudyEvent.decode(data)
                if stop is not None and stop.is_set():
                    return
        except grpc.RpcError as error:
            self._raise(error)
        finally:
            call.cancel()

    def reset(self) -> None:
        """End the connection, with all calls on it; the next call makes a new one, with the newest certificate."""
        with self._lock:
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def _open(self) -> Any:
        with self._lock:
            if self._channel is None:
                self._channel = grpc.insecure_channel(self._address, options=_OPTIONS)
            return self._channel

    def _unary(self, method: str, data: bytes, timeout: float) -> bytes:
        try:
            answer: bytes = self._open().unary_unary(f"/{SERVICE}/{method}")(data, timeout=timeout)
        except grpc.RpcError as error:
            self._raise(error)
        except ValueError:  # the channel was closed by another thread
            raise _no_connection("the line was closed") from None
        return answer

    def _raise(self, error: Any) -> NoReturn:
        """gRPC's error as one of ours."""
        code, details = error.code(), error.details() or ""
        if details.startswith("{"):
            try:
                refusal = Refusal.decode(details.encode())
            except ControlError:
                pass
            else:
                raise refusal.error() from None
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:  # gRPC itself says so; the line is well
            raise ControlError("the coordinator is busy, or the message is too large for it", reason="busy",
                               remedy="nothing, it is tried again") from None  # fmt: skip
        status = self._status()
        self.reset()  # a dead line must not be waited for twice
        if code is grpc.StatusCode.CANCELLED:
            raise _no_connection("the call was ended here") from None
        if status.reason in REFUSALS:
            raise CertificateError("the coordinator does not admit this site", reason=status.reason,
                                   found=status.reason, remedy=REFUSALS[status.reason]) from None  # fmt: skip
        if code is grpc.StatusCode.DEADLINE_EXCEEDED and not status.reason:
            raise _no_connection("the coordinator's control service does not answer in time", "no_answer") from None
        if status.reason:
            raise _no_connection(status.words, status.reason) from None
        raise _no_connection("the connection to the coordinator's control service broke", found=code.name) from None


class ControlLine:
    """A tunnel for the control service in a thread of its own, and a client over it; a context manager.

    Args:
        enrolling: to the door for enrolment, without a certificate.
        proxy: the hospital's.
    """

    def __init__(
        self, identity: SiteIdentity, *, enrolling: bool = False, proxy: Proxy | None = None,
        limits: TunnelLimits | None = None, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._folder = Path(tempfile.mkdtemp(prefix="mammofed-"))  # mode 0700, and a short name: sun_path is small
        socket = self._folder / "control"
        self._tunnel = Tunnel(identity, listen=socket, tls=False, alpn=CONTROL_ALPN, enrolling=enrolling, proxy=proxy,
                              limits=limits, clock=clock)  # fmt: skip
        self.client = ControlClient(socket, status=lambda: self._tunnel.status)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None
        self._ready = threading.Event()
        self._failed: MammoFedError | None = None
        self._thread = threading.Thread(target=self._run, name="control-line", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(START_S)
        if self._failed is not None or self._loop is None:
            self._thread.join(START_S)
            shutil.rmtree(self._folder, ignore_errors=True)
            raise self._failed or _no_connection("the tunnel to the control service did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.reset()
        assert self._loop is not None and self._over is not None
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(START_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def status(self) -> TunnelStatus:
        """How the line is, by the last connection."""
        return self._tunnel.status

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except MammoFedError as error:
            self._failed = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        over = asyncio.Event()
        async with self._tunnel:
            self._loop, self._over = asyncio.get_running_loop(), over
            self._ready.set()
            await over.wait()


def _no_connection(problem: str, reason: str = "no_connection", *, found: object = None) -> ControlError:
    return ControlError(problem, reason=reason, found=found,
                        remedy="nothing, it is tried again; if it stays, run `mammofed site doctor`")  # fmt: skip
