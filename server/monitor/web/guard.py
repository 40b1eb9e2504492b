"""Who may read the page, and what a browser may do with it: checks before every request, headers on every answer."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared_model.errors import ConfigError

COOKIE: Final = "mammofed_monitor"
MIN_TOKEN: Final = 16  # characters
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()", "Cache-Control": "no-store",
}  # fmt: skip


def is_loopback(host: str) -> bool:
    """Whether an address, or `localhost`, is of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_exposure(host: str, *, tls: bool, token: str | None, certificates: bool = False) -> None:
    """Refuse to be seen by others without encryption and without asking who they are.

    Args:
        tls: the page has a certificate. token: that readers must know. certificates: readers must have one.

    Raises:
        ConfigError: `host` is not of this machine alone, and TLS is missing, or both token and certificates; or the
            token is short; or certificates are asked for without TLS.
    """
    if token is not None and len(token) < MIN_TOKEN:
        raise ConfigError("the monitor's token is too short", found=f"{len(token)} characters",
                          expected=f"at least {MIN_TOKEN}")  # fmt: skip
    if certificates and not tls:
        raise ConfigError("readers' certificates are asked for by TLS alone", found="--client-ca",
                          expected="--cert and --key beside it")  # fmt: skip
    asked = token is not None or certificates
    if is_loopback(host) or (tls and asked):
        return
    ways = (("a certificate (--cert, --key)", tls), ("a token (--token-file) or readers' (--client-ca)", asked))
    raise ConfigError(
        f"the monitor would be open to others at {host}",
        expected=" and ".join(name for name, there in ways if not there),
        remedy="give them, or leave --host out and reach it through SSH: `ssh -L 8787:127.0.0.1:8787 MACHINE`",
    )  # fmt: skip


class Guard:
    """ASGI middleware: reading only, known hosts only, the token where there is one, strict headers on everything.

    Args:
        hosts: names that a browser may have in its address bar; against DNS rebinding.
        token: that every request must bring, as `Authorization: Bearer`, as cookie, or once as `?token=`, which becomes
            the cookie.
        secure: the page is served over TLS.
    """

    def __init__(self, app: ASGIApp, *, hosts: Collection[str], token: str | None, secure: bool) -> None:
        self._app, self._hosts, self._token, self._secure = app, frozenset(hosts), token, secure

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request and hand it on, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a websocket: there is none here
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if self._secure:
                    headers["Strict-Transport-Security"] = "max-age=31536000"
            await send(message)

        answer = self._refusal(scope)
        await (answer or self._app)(scope, receive, marked)

    def _refusal(self, scope: Scope) -> PlainTextResponse | RedirectResponse | None:
        headers = Headers(scope=scope)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("This monitor only reads.\n", 405, {"Allow": "GET, HEAD"})
        if _host(headers.get("host", "")) not in self._hosts:
            return PlainTextResponse("Not a name of this monitor.\n", 421)
        if self._token is None:
            return None
        offered = parse_qs(scope["query_string"].decode("latin-1")).get("token", [])
        if len(offered) == 1 and self._fits(offered[0]):
            answer = RedirectResponse("/", 303)  # out of the address bar, and of the history
            answer.set_cookie(COOKIE, self._token, httponly=True, secure=self._secure, samesite="strict")
            return answer
        if self._fits(headers.get("authorization", "").removeprefix("Bearer ")) or self._fits(_cookie(headers)):
            return None
        return PlainTextResponse("This monitor asks for its token: open the address that it printed.\n", 401)

    def _fits(self, offered: str) -> bool:
        return self._token is not None and hmac.compare_digest(offered.encode(), self._token.encode())


def _host(header: str) -> str:
    """Host without port: `[::1]:8787` is `::1`."""
    name = header.rsplit(":", 1)[0] if header.rpartition(":")[2].isdecimal() else header
    return name.strip("[]").lower()


def _cookie(headers: Headers) -> str:
    jar = SimpleCookie()
    try:
        jar.load(headers.get("cookie", ""))
    except CookieError:
        return ""
    return jar[COOKIE].value if COOKIE in jar else ""
