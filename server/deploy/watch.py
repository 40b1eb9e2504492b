"""The watch for alarms over a coordinator's studies, with their JSON lines, as a process that the daemon keeps alive.

A process of its own: a slow webhook or tracking server is not to hold up doors and studies. What it tells and to whom
is `monitor.yaml` of the home (`configs/monitor/alarms.yml` has the defaults); a file that is wrong ends it with its
reason in `link/logs/watch.log`, and the studies go on.
"""

from __future__ import annotations

import os
from typing import Final

from server.deploy.home import CoordinatorHome
from server.monitor.companion import command_of
from shared_model.supervisor import Service

NAME: Final = "watch"
HANDED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "PYTHONPATH", "SSL_CERT_FILE")
HANDED_ON_PREFIX: Final = "MLFLOW_"  # where its tracking server is, and who we are there


def watch_service(home: CoordinatorHome) -> Service:
    """For the daemon's supervisor."""
    environment = {name: value for name, value in os.environ.items()
                   if name in HANDED_ON or name.startswith(HANDED_ON_PREFIX)}  # fmt: skip
    folder = home.folder.resolve()
    return Service(name=NAME, command=command_of(folder), environment=environment, folder=folder,
                   log=folder / "link" / "logs" / f"{NAME}.log", slowest_s=60.0)  # fmt: skip
