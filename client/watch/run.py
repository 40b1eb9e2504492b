"""Follows a member's studies over the coordinator's watch stream, again and again from where it left off.

Called by `mammofed site watch` and `mammofed monitor https://...`; needs the courier's keys and no patient's data.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import Final
from urllib.parse import urlsplit

from client.deploy.control import ControlLine
from client.deploy.home import SiteHome
from client.deploy.identity import SiteFile, SiteIdentity
from client.watch.show import Screen
from client.watch.story import Story
from shared_model.control import WatchRequest
from shared_model.errors import CertificateError, ConfigError, ControlError, MammoFedError

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


def known_rounds(home: SiteHome) -> dict[str, int]:
    """Rounds of the protocols that came to this site; what cannot be read is not known."""
    from client.trainer.consent import proposals
    from client.trainer.site import release

    with contextlib.suppress(MammoFedError):
        return {name: signed.protocol.rounds for name, signed in proposals(home, release=release()).items()}
    return {}


def follow(
    identity: SiteIdentity, story: Story, screen: Screen, *, stop: threading.Event,
    line: Callable[[SiteIdentity], ControlLine] = ControlLine, again_s: float = AGAIN_S,
) -> None:  # fmt: skip
    """Show what happens until `stop`; a line that breaks is made anew and goes on after the last event.

    Raises:
        CertificateError: the coordinator does not admit this member any more. ControlError: two watch already.
    """
    while not stop.is_set():
        try:
            with line(identity) as there:
                screen.tunnel = partial(_words, there)
                for event in there.client.watch(WatchRequest(after=story.after), stop=stop):
                    screen.line("connected")  # now that something came, and not before
                    story.apply(event)
                    screen.told(event)
        except CertificateError:
            raise
        except ControlError as error:
            if error.reason == "busy":
                raise
            screen.line(f"{error.problem}: tried again every {again_s:g} s")
        except MammoFedError as error:
            screen.line(f"{error.problem}: tried again every {again_s:g} s")
        finally:
            screen.tunnel = None
        stop.wait(again_s)


def _words(line: ControlLine) -> str:
    return line.status.words
