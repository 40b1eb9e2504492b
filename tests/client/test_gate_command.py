"""The courier's `flwr-clientapp` is Flower's own command of the pinned version, without what SuperNode would import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from client import gate
from shared_model import flower_gate

HEAVY = ("torch", "opacus", "sqlalchemy", "alembic", "pandas", "ray")


def test_the_command_is_flowers_own_and_a_message_pays_for_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from client.gate import flowers_command\n"
        "from flwr.supernode.runtime import run_clientapp\n"
        "import client.app\n"
        "command = flowers_command()\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))\n"
        "assert command.run_clientapp is run_clientapp.run_clientapp\n"
        "from flwr.supernode.cli import flwr_clientapp as theirs\n"
        "import inspect\n"
        "assert inspect.getsource(command.flwr_clientapp) == inspect.getsource(theirs)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_gate_is_put_before_the_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.supernode.runtime import run_clientapp

    names = ("install_from_fab", "get_load_client_app_fn")  # both must exist to be replaced
    for name in names:
        monkeypatch.setattr(run_clientapp, name, getattr(run_clientapp, name))
    (tmp_path / "list").write_text(f"{flower_gate.bundle_sha256()}\n")
    monkeypatch.setenv(flower_gate.BUNDLES, str(tmp_path / "list"))
    seen = list[str]()

    class Command:
        @staticmethod
        def flwr_clientapp() -> None:
            seen.extend(getattr(run_clientapp, name).__module__ for name in names)

    monkeypatch.setattr(gate, "flowers_command", lambda: Command)
    gate.main()
    assert seen == ["shared_model.flower_gate", "client.gate"]
