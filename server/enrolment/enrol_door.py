"""The door for whoever has no certificate yet: TLS 1.3 with the coordinator's certificate alone, to `Enrol` alone.

Anybody may knock here, so everything is small: few connections at a time, each for some seconds and some kilobytes. A
separate gRPC server with workers of its own answers, so that strangers cannot keep members waiting.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from server.enrolment.door import Door, GatewayEvent, GatewayLimits
from server.enrolment.peers import STRANGER, ControlUpstream, carry
from shared_model.certificates import CONTROL_ALPN
from shared_model.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EnrolLimits(GatewayLimits):
    """Bounds of this door."""

    connections: int = 32
    handshakes: int = 32
    per_address: int = 4
    """Connections from one address: nobody keeps the door shut for all others from a single machine."""
    lifetime_s: float = 30.0
    """Of a connection; a request and its answer take less than one."""
    bytes_up: int = 256 << 10
    """Of a connection; a request has some 2 kB."""


class EnrolDoor(Door):
    """The door; an async context manager that listens while it is open.

    Args:
        context: `certificates.enrolling_server_context` of the authority.
        control: the gRPC server that answers strangers.
    """

    def __init__(
        self, *, context: ssl.SSLContext, control: ControlUpstream, host: str, port: int = 0,
        limits: EnrolLimits | None = None, report: Callable[[GatewayEvent], None] = lambda event: None,
    ) -> None:  # fmt: skip
        if context.minimum_version is not ssl.TLSVersion.TLSv1_3:
            raise ConfigError("the enrolment door's TLS must be 1.3")
        self._bounds = limits or EnrolLimits()
        super().__init__(context=context, host=host, port=port, limits=self._bounds, report=report)
        self._control, self._inside = control, Counter[str]()

    def _full(self) -> bool:
        return self._inside.total() >= self._bounds.connections

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = str(writer.get_extra_info("peername")[0])
        busy = self._full() or self._inside[address] >= self._bounds.per_address
        if busy or writer.get_extra_info("ssl_object").selected_alpn_protocol() != CONTROL_ALPN:
            self._report(GatewayEvent(kind="refused", reason="busy" if busy else "no_service"))
            writer.transport.abort()
            return
        self._inside[address] += 1
        self._report(GatewayEvent(kind="admitted", reason="enrolment"))
        try:
            async with asyncio.timeout(self._bounds.lifetime_s):
                await carry(reader, writer, to=self._control, peer=STRANGER, idle_s=self._bounds.idle_s,
                            stall_s=self._bounds.stall_s, most=self._bounds.bytes_up)  # fmt: skip
        finally:
            self._inside[address] -= 1
            self._inside += Counter()  # forgets addresses with nothing left
