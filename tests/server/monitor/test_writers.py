"""Writers: each event arrives once, whoever dies; another tool that fails costs the study nothing and is said once."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from server.monitor.writers import Feed, Feeds, check_writers
from server.monitor.writers.cursor import Cursor
from server.monitor.writers.feed import KINDS
from server.monitor.writers.points import points
from server.rounds.events import Event
from server.rounds.journal import Journal
from server.rounds.states import StudyStep
from shared_model.errors import ConfigError, StorageError
from shared_model.protocol import Protocol
from tests.handmade_run import protocol_values


def event(kind: str, **values: Any) -> Event:
    return Event(**({"time": 1000.0, "kind": kind} | values))


ROUND = [
    event("round_opened", round=1, attempt=1),
    event("site_replied", round=1, attempt=1, site="north",
          data={"outcome": "contributed", "seconds": 1.5, "bytes_up": 10, "epsilon": 0.5, "loss": math.inf}),
    event("evaluated", round=1, site="evaluator", data={"auc_fused": 0.8, "auc_image": 0.7}),
    event("round_closed", round=1, attempt=1, data={"contributed": 3}),
]  # fmt: skip
END = event("finished", data={"status": "COMPLETE", "rounds_completed": 1})


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "protocol.json").write_text(Protocol.create(protocol_values()).to_json())
    tell(tmp_path, ROUND)
    return tmp_path


def tell(run_dir: Path, events: Sequence[Event]) -> None:
    with Journal(run_dir / "journal.sqlite", lambda _: None) as journal, journal.entry():
        for each in events:
            journal.event(each)


def lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "monitor" / "events.jsonl").read_bytes().splitlines()]


def test_the_points_of_an_event_are_its_finite_numbers_by_name_and_round() -> None:
    found = {point.name: (point.value, point.step) for each in ROUND for point in points(each)}
    assert found == {
        "site/north/seconds": (1.5, 1), "site/north/bytes_up": (10.0, 1), "site/north/epsilon": (0.5, 1),
        "auc/fused": (0.8, 1), "auc/image": (0.7, 1), "round/contributed": (3.0, 1),
    }  # fmt: skip


def test_json_lines_hold_every_event_once_and_any_number_as_json_has_it(run_dir: Path) -> None:
    for _ in range(2):  # a second process goes on where the first one was
        Feed(run_dir, ["jsonl"]).step()
    tell(run_dir, [END])
    Feed(run_dir, ["jsonl"]).step()
    assert [line["id"] for line in lines(run_dir)] == [1, 2, 3, 4, 5]
    assert lines(run_dir)[1]["data"]["loss"] == "inf" and lines(run_dir)[4]["data"]["status"] == "COMPLETE"


@pytest.mark.parametrize("torn", [b'{"id": 4, "ki', b"\xff\xff", b'{"id": 4}'])
def test_a_line_that_was_torn_by_a_crash_is_written_again(run_dir: Path, torn: bytes) -> None:
    Feed(run_dir, ["jsonl"]).step()
    path = run_dir / "monitor" / "events.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"\n".join(whole.splitlines()[:3]) + b"\n" + torn)
    Feed(run_dir, ["jsonl"]).step()
    assert path.read_bytes() == whole


class Fake:
    """A tool that fails when it is told to."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.fails, self.closed = False, False

    def begin(self) -> int:
        return self.got[-1] if self.got else 0

    def write(self, events: Sequence[tuple[int, Event]]) -> None:
        if self.fails:
            raise OSError("the tracking server is away")
        self.got += [number for number, _ in events]

    def close(self) -> None:
        self.closed = True


def test_a_tool_that_fails_is_said_once_tried_again_and_costs_the_others_nothing(run_dir: Path) -> None:
    one, other, said = Fake(), Fake(), list[str]()
    feed = Feed(run_dir, ["mlflow", "jsonl"], say=said.append, make=lambda name, _: one if name == "mlflow" else other)
    one.fails = True
    for _ in range(3):
        feed.step()
    assert other.got == [1, 2, 3, 4] and one.got == [] and len(said) == 1 and "is away" in said[0]
    one.fails = False
    tell(run_dir, [END])
    feed.step()
    assert one.got == [1, 2, 3, 4, 5] and "works again" in said[1]


def feeds(run_dir: Path, fake: Fake) -> Feeds:
    return Feeds(lambda: [run_dir], ["jsonl"], step_s=3600.0,
                 make=lambda folder, names: Feed(folder, names, make=lambda *_: fake))  # fmt: skip


def test_at_the_end_everything_is_handed_on_and_the_tools_are_closed(run_dir: Path) -> None:
    fake = Fake()
    with feeds(run_dir, fake):
        pass
    assert fake.got == [1, 2, 3, 4] and fake.closed


def test_of_two_processes_one_feeds_and_the_other_takes_over(run_dir: Path) -> None:
    one, other = Feed(run_dir, ["jsonl"]), Feed(run_dir, ["jsonl"])
    assert one.step() and other.step() and len(lines(run_dir)) == 4
    tell(run_dir, [END])
    assert other.step() and len(lines(run_dir)) == 4
    one.close()
    assert other.step() and len(lines(run_dir)) == 5
    other.close()


def test_a_complete_study_is_closed_once_all_is_handed_on(run_dir: Path) -> None:
    fake = Fake()
    fake.fails = True
    watch = feeds(run_dir, fake)
    with Journal(run_dir / "journal.sqlite", lambda _: None) as journal:
        for step in (StudyStep.START, StudyStep.CHOOSE, StudyStep.TEST, StudyStep.COMPLETE):
            with journal.study_step(step):
                pass
    watch.step()
    assert not fake.closed and fake.got == []
    fake.fails = False
    watch.step()
    assert fake.closed and fake.got == [1, 2, 3, 4]
    fake.got.clear()
    watch.step()
    assert fake.got == []


def test_a_journal_that_is_not_there_yet_or_is_damaged_ends_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    feed = Feed(tmp_path, ["jsonl"], say=said.append)
    feed.step()
    assert said == [] and not (tmp_path / "monitor").exists()
    (tmp_path / "journal.sqlite").write_bytes(b"no database" * 500)
    feed.step()
    assert len(said) == 1 and "damaged" in said[0]


def test_unknown_writers_and_absent_packages_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_writers([]) == ("jsonl",) and check_writers(["jsonl", "jsonl"]) == ("jsonl",)
    with pytest.raises(ConfigError, match=r"expected: jsonl \| mlflow \| tensorboard"):
        check_writers(["wandb"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'mammofed\[mlflow\]'"):
        check_writers(["mlflow"])


def test_every_writer_with_a_package_is_an_extra_of_the_project() -> None:
    import tomllib

    root = Path(__file__).resolve().parents[3]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name for name, package in KINDS.items() if package} <= extras.keys()


def test_a_damaged_cursor_is_the_beginning(tmp_path: Path) -> None:
    for content in (b"{", b'{"last": -1}', b'{"last": 1, "more": 2}'):
        (tmp_path / "x.json").write_bytes(content)
        assert Cursor.read(tmp_path / "x.json") == Cursor()
    Cursor(last=7, run="abc").write(tmp_path / "x.json")
    assert Cursor.read(tmp_path / "x.json") == Cursor(last=7, run="abc")


# --- the real tools, where they are installed ---


def test_tensorboard_reads_the_curves_back_over_two_processes(run_dir: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator",
                                      reason="needs the extra `tensorboard`", exc_type=ImportError)  # fmt: skip
    said: list[str] = []
    for _ in range(2):
        feed = Feed(run_dir, ["tensorboard"], say=said.append)
        assert feed.step()
        feed.close()
        tell(run_dir, [event("evaluated", round=2, data={"auc_fused": 0.9})] if len(said) == 0 else [])
    assert said == []
    curves = accumulator.EventAccumulator(str(run_dir / "monitor" / "tensorboard"))
    curves.Reload()
    found = [(point.step, round(point.value, 3)) for point in curves.Scalars("auc/fused")]
    assert found[:2] == [(1, 0.8), (2, 0.9)]
    assert "site/north/epsilon" in curves.Tags()["scalars"]


def test_mlflow_has_one_run_with_parameters_curves_and_the_end(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = pytest.importorskip("mlflow.tracking", reason="needs the extra `mlflow`")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    said: list[str] = []
    Feed(run_dir, ["mlflow"], say=said.append).step()
    tell(run_dir, [END])
    Feed(run_dir, ["mlflow"], say=said.append).step()
    assert said == []
    client = tracking.MlflowClient(tracking_uri=(run_dir / "monitor" / "mlruns").resolve().as_uri())
    experiment = client.get_experiment_by_name("mammofed").experiment_id
    (run,) = client.search_runs([experiment])
    assert run.info.status == "FINISHED" and run.data.tags["mammofed.status"] == "COMPLETE"
    assert run.data.params["strategy"] == "fedavg" and run.data.params["epsilon"] == "8.0"
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "auc/fused")] == [(1, 0.8)]


def test_a_tracking_server_that_is_away_is_said_in_words(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow.tracking", reason="needs the extra `mlflow`")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said: list[str] = []
    Feed(run_dir, ["mlflow"], say=said.append).step()
    assert len(said) == 1 and "writer mlflow fails" in said[0]


def test_storage_errors_of_ours_are_said_as_they_are(run_dir: Path) -> None:
    said: list[str] = []

    def refuse(*_: object) -> Fake:
        raise StorageError("the disk refuses", remedy="make room")

    Feed(run_dir, ["jsonl"], say=said.append, make=refuse).step()
    assert "the disk refuses; to do: make room" in said[0]
