"""The private spots of Flower that the local engine touches, held against the pinned version."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import flwr.serverapp
from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.supercore.task_identity import TaskIdentity

from simulations.engine import local

PIN = "1.41.0"


def test_flower_is_the_version_that_the_private_spots_were_read_in() -> None:
    assert version("flwr") == PIN
    assert f"flwr[simulation]=={PIN}" in (Path(__file__).parents[2] / "pyproject.toml").read_text()


def test_a_message_takes_its_sender_from_the_task_identity() -> None:
    local._identify()
    message = Message(RecordDict(), 3, "train")
    assert (TaskIdentity.run_id, message.metadata.run_id) == (local.RUN_ID, local.RUN_ID)
    assert (message.metadata.src_node_id, message.metadata.dst_node_id) == (local.SERVER_NODE, 3)


def test_without_the_task_identity_no_message_can_be_made() -> None:
    """The day this passes without it, `_identify` can go."""
    code = "from flwr.app import Message, RecordDict; Message(RecordDict(), 3, 'train')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "TaskIdentity" in done.stderr
    assert done.returncode != 0


def test_a_number_set_by_the_grid_is_what_a_reply_refers_to() -> None:
    local._identify()
    message = Message(RecordDict(), 3, "train")
    local._number(message, "77")
    reply = Message(Error(1, "x"), reply_to=message)
    assert (message.metadata.message_id, reply.metadata.reply_to_message_id) == ("77", "77")
    assert reply.metadata.src_node_id == 3


def test_error_codes_are_flowers() -> None:
    assert local.APP_RAISED == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert local.NODE_UNAVAILABLE == ErrorCode.NODE_UNAVAILABLE


def test_the_grid_is_flowers_whole_interface() -> None:
    assert issubclass(local.LocalGrid, flwr.serverapp.Grid)
    assert not local.LocalGrid.__abstractmethods__


def test_private_flower_is_touched_in_one_file_only() -> None:
    root = Path(__file__).parents[2]
    pattern = re.compile(r"flwr\.(supercore|superlink|common|proto|server\b|client\b|compat)|metadata\.__dict__")
    touching = {
        str(path.relative_to(root))
        for package in ("client", "simulations")
        for path in (root / package).rglob("*.py")
        if pattern.search(path.read_text())
    }
    assert touching == {"simulations/engine/local.py"}
