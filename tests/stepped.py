"""A site whose courier is stepped by hand, beside a coordinator, both on one clock."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client.deploy.audit_exchange import courier_log
from client.deploy.control import ControlLine
from client.deploy.identity import SiteIdentity
from client.deploy.presence import Presence, Trainer
from client.deploy.status import CourierStatus
from shared_model.certificates import Role
from shared_model.private_files import make_private_folder
from tests.controlled import RELEASE, Hub
from tests.enrolled import Clock


class Site:
    """A site whose presence is stepped by hand, with a clock that goes when it is told to."""

    def __init__(self, hub: Hub, identity: SiteIdentity, *, clock: Clock, trainer: Trainer | None = None) -> None:
        self.hub, self.identity, self.clock, self.trainer = hub, identity, clock, trainer
        self.folder = identity.folder.parent / f"{identity.settings.site}-courier"
        make_private_folder(self.folder)
        self.audit = courier_log(self.folder, identity.settings.site)
        self.lines = 0
        self.start()

    def start(self, **options: Any) -> None:
        self.presence = Presence(self.folder, self.identity, audit=self.audit, release=RELEASE, trainer=self.trainer,
                                 clock=self.clock, line=self._line, **options)  # fmt: skip

    def _line(self, identity: SiteIdentity, enrolling: bool) -> ControlLine:
        self.lines += 1
        return self.hub.line(identity, enrolling=enrolling)

    def step(self, *, later: float = 0.0) -> CourierStatus:
        self.clock.now += later
        self.wait = self.presence.step()
        return self.presence.status

    def close(self) -> None:
        self.presence.close()
        self.audit.close()


@dataclass
class World:
    """A coordinator and a site, both on one clock."""

    hub: Hub
    clock: Clock
    north: Site


def world(folder: Path, clock: Clock, *, enrolled: bool = True, trainer: Trainer | None = None,
          role: Role = Role.SITE) -> World:  # fmt: skip
    hub = Hub(folder, clock)
    identity = (hub.home.enrol if enrolled else hub.home.begin)("north", role)
    return World(hub, clock, Site(hub, identity, clock=clock, trainer=trainer))


def written(site: Site) -> CourierStatus:
    status = CourierStatus.read(site.folder / "status.json")
    assert status is not None
    return status
