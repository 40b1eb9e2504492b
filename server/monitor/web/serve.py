"""Serves the page: its socket, its certificate, its token, the browser; called by `mammofed monitor`."""

from __future__ import annotations

import logging
import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from server.monitor.web.app import Metrics, create_app
from server.monitor.web.guard import check_exposure, is_loopback
from server.monitor.web.readers import Readers, checked_by, page_context
from server.monitor.web.source import Source
from shared_model.errors import ConfigError
from shared_model.private_files import read_private, write_private

DEFAULT_PORT = 8787
TOKEN_BYTES = 24
STREAMS_S = 10  # for streams to end: each looks once a second, on a busy machine later; then uvicorn cuts and complains
END_S = 20.0  # for all of it to end


@dataclass(frozen=True, kw_only=True)
class Door:
    """How the page is reached. names: further host names in its address; cert, key: PEM files; token: asked of all;
    readers: whose certificate is."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    names: tuple[str, ...] = ()
    cert: Path | None = None
    key: Path | None = None
    token: str | None = None
    readers: Readers | None = None

    @property
    def secure(self) -> bool:
        """Whether it speaks TLS."""
        return self.cert is not None

    @property
    def hosts(self) -> frozenset[str]:
        """Names that may stand in a browser's address bar."""
        mine = {"localhost", "127.0.0.1", "::1"}
        if not is_loopback(self.host):
            mine |= {self.host, socket.gethostname(), socket.getfqdn()}
        return frozenset(name.lower() for name in {*mine, *self.names})

    def url(self, port: int) -> str:
        """The address to open, with the token where there is one."""
        name = self.names[0] if self.names else self.host if self.host not in ("0.0.0.0", "::") else socket.getfqdn()  # noqa: S104
        host = f"[{name}]" if ":" in name else name
        return f"{'https' if self.secure else 'http'}://{host}:{port}/{f'?token={self.token}' if self.token else ''}"


def token_of(path: Path) -> str:
    """The token in a file; made there, for its owner alone, when it is absent.

    Raises:
        StorageError: the file is open to others, or the disk refuses. ConfigError: it holds no text.
    """
    if not path.exists():
        write_private(path, f"{secrets.token_urlsafe(TOKEN_BYTES)}\n".encode())
    try:
        return read_private(path, limit=4096).decode("ascii").strip()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} holds no token", expected="one line of ASCII") from None


def serve(
    source: Source, door: Door, *, say: Callable[[str], None], open_browser: bool = False,
    metrics: Metrics | None = None,
) -> None:  # fmt: skip
    """Serve until Ctrl-C or SIGTERM.

    Args:
        source: of the studies.
        say: is told the address.

    Raises:
        ConfigError: the port is taken, the certificate is none, or it would be open to others without TLS and token.
    """
    server, listening, url = _prepared(source, door, metrics)
    say(url)
    if open_browser:
        _open_browser(url)
    with listening:
        server.run(sockets=[listening])


@contextmanager
def serving(
    source: Source, door: Door, *, metrics: Metrics | None = None, open_browser: bool = False
) -> Iterator[str]:
    """Serve in a thread while the block runs, which is given the address. Raises as :func:`serve`."""
    server, listening, url = _prepared(source, door, metrics)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="page", daemon=True)
    with listening:
        thread.start()
        if open_browser:
            _open_browser(url)
        try:
            yield url
        finally:
            server.should_exit = True
            thread.join(END_S)


def _prepared(source: Source, door: Door, metrics: Metrics | None) -> tuple[uvicorn.Server, socket.socket, str]:
    check_exposure(door.host, tls=door.secure, token=door.token, certificates=door.readers is not None)
    if (door.cert is None) != (door.key is None):
        raise ConfigError("a certificate and its key belong together", expected="--cert and --key")
    tls: dict[str, Any] = {}
    if door.cert is not None and door.key is not None:
        context = page_context(door.cert, door.key, door.readers)
        tls = {"ssl_context_factory": lambda config, default: context}
    listening = _listen(door)
    app = create_app(source, hosts=door.hosts, token=door.token, secure=door.secure, metrics=metrics,
                     ending=lambda: server.should_exit)  # fmt: skip
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", ws="none", server_header=False, proxy_headers=False,
        http=checked_by(door.readers) if door.readers is not None else "h11", timeout_graceful_shutdown=STREAMS_S,
        limit_concurrency=200, **tls,
    )  # fmt: skip
    server = uvicorn.Server(config)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    return server, listening, door.url(int(listening.getsockname()[1]))


def _open_browser(url: str) -> None:
    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def _listen(door: Door) -> socket.socket:
    family = socket.AF_INET6 if ":" in door.host else socket.AF_INET
    try:
        return socket.create_server((door.host, door.port), family=family, backlog=128)
    except OSError as error:
        raise ConfigError(f"cannot listen on {door.host} port {door.port}: {error.strerror or error}",
                          remedy="give another --port; 0 takes any that is free") from None  # fmt: skip
