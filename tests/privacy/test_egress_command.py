"""`mammofed site egress`: what the security officer sees of a real round, in a table and as JSON."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from client.cli import site as site_group
from client.privacy.egress_log import LOG_FILE
from client.trainer.service import TrainerService
from shared_model.errors import AuditError
from shared_model.messages import DescribeRequest, Frame, TrainReply, decode, encode


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, study_maker: Callable[..., Any]) -> Any:
    """One site that trained one private round, was asked for it twice, and refused another."""
    study = study_maker(tmp_path_factory.mktemp("study"), private=True)
    service = TrainerService(study.config("site-01"), compute=threading.Lock())
    for message in (study.train(), study.train(), study.train(study="other")):
        service.exchange(encode(Frame(message, study.arrays)), wanted=lambda: True)
    described = service.exchange(encode(Frame(DescribeRequest())), wanted=lambda: True)
    assert isinstance(decode(described).message.protocols, tuple)  # type: ignore[union-attr]
    service.close()
    return study.files["site-01"].parent


def run(*arguments: str) -> Any:
    return CliRunner().invoke(site_group, ["egress", *arguments], env={"COLUMNS": "200"})


def test_the_table_says_what_left_and_how_it_is_protected(home: Any) -> None:
    done = run(str(home))
    assert done.exit_code == 0, done.output
    for words in ("model update", "noised", "differential privacy for each patient", "unprotected", "scrubbed",
                  "Replies      3 different ones, 1 repeated with the same bytes"):  # fmt: skip
        assert words in done.output, done.output


def test_the_documents_name_every_value(home: Any) -> None:
    lines = [json.loads(line) for line in run(str(home), "--json").output.splitlines() if line.startswith("{")]
    trained = [line for line in lines if line.get("reply") == "trained" and line["kind"] == "released"]
    values = [value for line in trained for value in line["values"]]
    assert {tuple(sorted(value)) for value in values} == {
        ("bytes", "name", "protection", "purpose", "sha256", "shape")
    }
    noised = [value for value in values if value["protection"] == "noised"]
    assert len(noised) > 20 and all(value["bytes"] == 4 * _size(value["shape"]) for value in noised)
    (reply,) = {line["reply_sha256"] for line in trained}
    assert [line["reply_sha256"] for line in lines if line["kind"] == "repeated"] == [reply]
    assert TrainReply.__name__ not in run(str(home), "--json").output


def _size(shape: list[int]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def test_one_study_alone(home: Any) -> None:
    assert "Nothing left this site for study other" in run(str(home), "--study", "other").output
    found = run(str(home), "--study", "unit", "--json").output
    assert '"reply": "error"' not in found and '"reply": "trained"' in found


def test_a_changed_list_is_not_shown(home: Any) -> None:
    path = home / "state" / LOG_FILE
    data = path.read_bytes()
    path.write_bytes(data.replace(b"noised", b"public", 1))
    try:
        assert isinstance(run(str(home)).exception, AuditError)
    finally:
        path.write_bytes(data)
    assert run(str(home)).exit_code == 0
