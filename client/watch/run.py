"""Follows a member's studies over the coordinator's watch stream, again and again from where it left off.

Called by `mammofed site watch` and `mammofed monitor https://...`; needs the courier's keys and no patient's data.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Final
from urllib.parse import urlsplit

from client.deploy.control import ControlLine
from client.deploy.home import SiteHome
from client.deploy.identity import SiteFile, SiteIdentity
from client.deploy.inbox import Inbox
from shared_model.control import WatchRequest
from shared_model.errors import CertificateError, ConfigError, ControlError, MammoFedError
from shared_model.protocol import Protocol
from shared_model.story import Story, Watcher

AGAIN_S: Final = 5.0


def check_address(url: str, settings: SiteFile) -> None:
    """Refuse an address that is not this member's coordinator: its certificate is shown to nobody else.

    Raises:
        ConfigError: of another form, or another coordinator's.
    """
    expected = f"https://{settings.host}:{settings.port}"
    try:
        parts = urlsplit(url)
        more = parts.query or parts.fragment or parts.username or parts.path.strip("/")
        same = (parts.scheme, parts.hostname, parts.port or 443) == ("https", settings.host.lower(), settings.port)
    except ValueError:  # no port at all
        more, same = "", False
    if more or not same:
        raise ConfigError("this is not the address of this site's coordinator", found=url[:200], expected=expected,
                          remedy="give the address that was given to `mammofed site init --server`")  # fmt: skip


def known_protocols(home: SiteHome) -> dict[str, Protocol]:
    """Protocols that came to this site, by study; what cannot be read is not known."""
    with contextlib.suppress(MammoFedError):
        inbox = Inbox(home.courier, site=home.identity().settings.site, release=version("mammofed"))
        return {signed.protocol.study: signed.protocol for signed in inbox.protocols()}
    return {}


def certificate_ends(identity: SiteIdentity) -> float | None:
    """When the member's certificate ends, seconds since 1970; None when there is none that can be read."""
    with contextlib.suppress(MammoFedError, OSError):
        certificate = identity.certificate()
        return certificate.not_valid_after_utc.timestamp() if certificate is not None else None
    return None


def follow(
    identity: SiteIdentity, story: Story, watcher: Watcher, *, stop: threading.Event,
    line: Callable[[SiteIdentity], ControlLine] = ControlLine, again_s: float = AGAIN_S,
) -> None:  # fmt: skip
    """Show what happens until `stop`; a line that breaks is made anew and goes on after the last event.

    Raises:
        CertificateError: the coordinator does not admit this member any more. ControlError: two watch already.
    """
    while not stop.is_set():
        try:
            with line(identity) as there:
                watcher.tunnel = partial(_words, there)
                opened = partial(watcher.line, "connected", up=True)
                for event in there.client.watch(WatchRequest(after=story.after), stop=stop, opened=opened):
                    story.apply(event)
                    watcher.told(event)
        except MammoFedError as error:
            for_good = isinstance(error, CertificateError) or (
                isinstance(error, ControlError) and error.reason == "busy"
            )
            watcher.line(f"{error.problem}{'' if for_good else f': tried again every {again_s:g} s'}", up=False)
            if for_good:
                raise
        finally:
            watcher.tunnel = None
        stop.wait(again_s)


def _words(line: ControlLine) -> str:
    return line.status.words
