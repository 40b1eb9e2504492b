"""The hospital's HTTP proxy: a way through it by CONNECT (RFC 9110 9.3.6), before TLS begins; called by the tunnel."""

from __future__ import annotations

import asyncio
import base64
import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import h11

from shared_model.errors import ConfigError, TunnelError

_MAX_HEAD_BYTES = 16 << 10


@dataclass(frozen=True, kw_only=True)
class Proxy:
    """Where the proxy is. credentials: `user:password` for Basic authentication, never shown; "" for none."""

    host: str
    port: int
    credentials: str = field(default="", repr=False)

    @classmethod
    def parse(cls, url: str) -> Proxy:
        """A proxy from `http://[user:password@]host:port`.

        Raises:
            ConfigError: another kind of address. The message does not repeat it: a password may be in it.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or 0
        except ValueError:
            host, port, parts = "", 0, urlsplit("")
        named = re.fullmatch(r"[A-Za-z0-9.:_-]{1,253}", host) and port
        if parts.scheme != "http" or not named or parts.path not in ("", "/"):
            raise ConfigError("not an address of a proxy", expected="http://[user:password@]host:port",
                              remedy="ask the network team; TLS to the proxy itself is not supported")  # fmt: skip
        credentials = ""
        if parts.username is not None:
            credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        return cls(host=host, port=port, credentials=credentials)


async def connect(proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, to: str) -> None:
    """Ask the proxy for a tunnel to `to` (host:port); the stream is the tunnel afterwards.

    Raises:
        TunnelError: the proxy refuses (`proxy_login`, `proxy_refused`) or talks something else (`proxy_broken`).
        OSError: the connection broke.
    """
    headers = [("Host", to)]
    if proxy.credentials:
        headers.append(("Proxy-Authorization", "Basic " + base64.b64encode(proxy.credentials.encode()).decode("ascii")))
    http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD_BYTES)
    writer.write(http.send(h11.Request(method="CONNECT", target=to, headers=headers)))
    writer.write(http.send(h11.EndOfMessage()) or b"")
    await writer.drain()
    try:
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await reader.read(4096))
            elif not isinstance(event, h11.InformationalResponse):
                break
    except h11.RemoteProtocolError:
        event = None
    if not isinstance(event, h11.Response):
        raise TunnelError("the proxy does not talk HTTP", reason="proxy_broken",
                          remedy="check the proxy's address and port")  # fmt: skip
    if event.status_code == 407:
        raise TunnelError("the proxy wants a login", reason="proxy_login", found=event.status_code,
                          remedy="give user and password with its address; proxies that want NTLM or Kerberos need an "
                          "exception for this machine")  # fmt: skip
    if not 200 <= event.status_code < 300:
        raise TunnelError("the proxy does not let us through", reason="proxy_refused", found=event.status_code,
                          remedy=f"ask the hospital's network team to allow CONNECT to {to}")  # fmt: skip
    if http.trailing_data[0]:  # the coordinator never speaks first: this is not it
        raise TunnelError("the proxy talks into the tunnel", reason="proxy_broken", remedy="check the proxy")
