"""Stands where Flower's own `flwr-serverapp` would: runs the bundle of the installed release, and no other.

Flower's Control API has no login. Without this, a process of any user of the coordinator's machine (the evaluator's
courier, say, which runs what Flower gives it) could submit an app of its own, which would run beside the signing key.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from shared_model.flower_gate import checked, read_list


def main() -> None:
    """Run one of Flower's ServerApp processes with the gate in place.

    Raises:
        ConfigError: the coordinator's list is absent.
    """
    from flwr.superlink.cli import flwr_serverapp

    runtime: Any = import_module("flwr.superlink.runtime.run_serverapp")  # its package hides it behind a function
    # What is unpacked then is a manifest without code, made by this very release.
    runtime.install_from_fab = checked(runtime.install_from_fab, read_list())
    flwr_serverapp()
