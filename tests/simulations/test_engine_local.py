"""The local engine with real trainer processes: order, equality over pool sizes, deadlines, deaths, repetitions."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message, RecordDict

from client.app import WAITED, content_of, frame_of
from shared_model.errors import ConfigError, TrainerError
from shared_model.messages import (
    DescribeReply,
    DescribeRequest,
    ErrorReply,
    EvaluateReply,
    Frame,
    TrainReply,
    weights_sha256,
)
from simulations.engine import GridEvent, LocalGrid, TrainerPool

Study = Any
LONG_S = 300.0  # for what must come: never waited for in vain


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """On a busy machine a trainer may take longer than a pool waits before it ends it by force."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulations.engine.pool.STOP_S", LONG_S)
        yield


def make_pool(study: Study, processes: int | None, *, name: str = "logs") -> TrainerPool:
    return TrainerPool(
        list(study.files.values()), log_dir=study.root / name, processes=processes, start_timeout_s=LONG_S
    )


def to(node: int, frame: Frame, kind: str = "train") -> Message:
    return Message(content_of(frame), node, kind, group_id="1")


def replies_by_node(messages: Any) -> dict[int, Any]:
    return {m.metadata.src_node_id: frame_of(m.content) for m in messages}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, study_maker: Callable[..., Study]) -> Any:
    """A private study of three sites and the evaluator on two processes, for all tests that leave it whole."""
    study = study_maker(tmp_path_factory.mktemp("running"), sites=3, private=True)
    events: list[GridEvent] = []
    with make_pool(study, 2) as pool:
        grid = LocalGrid(pool, observer=events.append)
        yield study, pool, grid, events
        grid.close()


def test_nodes_are_sites_by_name_and_the_evaluator_last(running: Any) -> None:
    study, pool, grid, _ = running
    assert list(grid.get_node_ids()) == [1, 2, 3, 4]
    assert [n.node_id for n in grid.get_nodes()] == [1, 2, 3, 4]
    assert dict(pool.nodes) == {1: "site-01", 2: "site-02", 3: "site-03", 4: "evaluator"}
    found = replies_by_node(grid.send_and_receive([to(n, Frame(DescribeRequest()), "query.describe") for n in (4, 2)]))
    assert {n: (f.message.site, f.message.role) for n, f in found.items()} == {
        4: ("evaluator", "evaluator"), 2: ("site-02", "site"),
    }  # fmt: skip
    assert all(isinstance(f.message, DescribeReply) for f in found.values())
    assert study.protocol.sha256 in found[2].message.protocols


def test_a_round_and_an_evaluation_and_the_same_bytes_when_repeated(running: Any) -> None:
    study, _, grid, events = running
    frame = Frame(study.train(), study.arrays)
    events.clear()
    first = replies_by_node(grid.send_and_receive([to(n, frame) for n in (1, 2, 3)], timeout=LONG_S))
    assert {n: f.message.outcome for n, f in first.items()} == {1: "trained", 2: "trained", 3: "trained"}
    again = replies_by_node(grid.send_and_receive([to(n, frame) for n in (3, 2, 1)], timeout=LONG_S))
    for node, reply in first.items():
        assert again[node].message == reply.message
        assert weights_sha256(again[node].arrays) == weights_sha256(reply.arrays)
    assert len({weights_sha256(f.arrays) for f in first.values()}) == 3
    evaluation = grid.send_and_receive([to(4, Frame(study.evaluate("selection"), study.arrays), "evaluate")])
    assert isinstance(replies_by_node(evaluation)[4].message, EvaluateReply)
    finished = [e for e in events if e.kind == "finished"]
    assert len(finished) == len([e for e in events if e.kind == "started"]) == 7
    size = sum(a.nbytes for a in study.arrays.values())
    assert all(e.bytes_down > size and not e.failed and e.seconds >= 0 for e in finished)
    assert all(e.bytes_up > size for e in finished if e.message_type == "train")


def test_replies_carry_the_ids_that_flower_gives(running: Any) -> None:
    _, _, grid, _ = running
    message = to(1, Frame(DescribeRequest()), "query.describe")
    (number,) = grid.push_messages([message])
    reply: list[Message] = []
    while not reply:
        reply = list(grid.pull_messages([number]))
    assert message.metadata.message_id == number
    meta = reply[0].metadata
    assert (meta.reply_to_message_id, meta.src_node_id, meta.group_id) == (number, 1, "1")
    assert list(grid.pull_messages([number])) == []


def test_one_content_for_all_nodes_is_not_shared(running: Any) -> None:
    """Flower's strategies put one RecordDict into every message; what one site changes, another must not see."""
    study, pool, _, _ = running
    seen: list[RecordDict] = []

    def meddling(message: Message, context: Any) -> Message:
        seen.append(message.content)
        message.content["extra"] = message.content.config_records["message"]
        return Message(message.content, reply_to=message)

    grid = LocalGrid(pool, app=meddling)  # type: ignore[arg-type]
    content = content_of(Frame(study.train(), study.arrays))
    replies = list(grid.send_and_receive([Message(content, n, "train") for n in (1, 2, 3)]))
    assert len(replies) == len({id(c) for c in seen}) == 3
    assert "extra" not in content
    grid.close()


def test_who_waits_in_a_lane_is_told_so_and_replies_come_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("simulations.engine.local.time", SimpleNamespace(monotonic=lambda: clock.now))
    lane, all_pushed = SimpleNamespace(index=0, socket="none"), threading.Event()
    pool = SimpleNamespace(nodes={1: "a", 2: "b", 3: "c"}, trainers=[lane], trainer=lambda site: lane,
                           ensure=lambda lane: None)  # fmt: skip

    def app(message: Message, context: Any) -> Message:
        assert all_pushed.wait(LONG_S)
        clock.now += 5.0
        content = content_of(Frame(DescribeRequest()))
        content.config_records["message"][WAITED] = 0.25  # at the site
        return Message(content, reply_to=message)

    grid = LocalGrid(pool, app=app)  # type: ignore[arg-type]
    numbers = list(grid.push_messages([to(n, Frame(DescribeRequest())) for n in (1, 2, 3)]))
    all_pushed.set()
    found: dict[str, Any] = {}
    while len(found) < 3:
        found |= {r.metadata.reply_to_message_id: r for r in grid.pull_messages(numbers)}
    waited = [found[number].content.config_records["message"][WAITED] for number in numbers]
    assert waited == [0.25, 5.25, 10.25]
    grid.close()


def test_an_app_that_fails_is_an_error_reply(running: Any) -> None:
    _, pool, _, _ = running

    def failing(message: Message, context: Any) -> Message:
        raise ValueError("broken")

    grid = LocalGrid(pool, app=failing)  # type: ignore[arg-type]
    (reply,) = grid.send_and_receive([to(2, Frame(DescribeRequest()), "query.describe")])
    assert reply.has_error()
    assert (reply.error.code, reply.metadata.src_node_id) == (2, 2)
    grid.close()


def test_who_is_late_is_left_out_and_the_next_round_goes_on(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline leaves out the slow site and everything that still waits in its lane; nothing of it comes later.

    The clock stands still until all others were heard, and then the deadline is over: however busy the machine is.
    """
    _, pool, _, _ = running
    heard: list[Message] = []
    release, served = threading.Event(), []
    slow = pool.trainer(pool.nodes[1])

    def sometimes_slow(message: Message, context: Any) -> Message:
        served.append(context.node_id)
        if context.node_id == 1 and not release.is_set():
            release.wait(LONG_S)
        return Message(RecordDict(), reply_to=message)

    class Hearing(LocalGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            replies = list(super().pull_messages(message_ids))
            heard.extend(replies)
            return replies

    grid = Hearing(pool, app=sometimes_slow)  # type: ignore[arg-type]
    neighbour = [n for n, s in pool.nodes.items() if pool.trainer(s) is slow and n != 1]
    others = [n for n, s in pool.nodes.items() if pool.trainer(s) is not slow]
    messages = [to(n, Frame(DescribeRequest())) for n in (1, *neighbour, *others)]
    clock = SimpleNamespace(monotonic=lambda: 2 * LONG_S if len(heard) >= len(others) else 0.0)
    monkeypatch.setattr("simulations.engine.local.time", clock)
    replies = grid.send_and_receive(messages, timeout=LONG_S)
    assert sorted(m.metadata.src_node_id for m in replies) == sorted(others)
    release.set()
    replies = grid.send_and_receive([to(n, Frame(DescribeRequest())) for n in pool.nodes], timeout=LONG_S)
    assert sorted(m.metadata.src_node_id for m in replies) == sorted(pool.nodes)
    assert all(served.count(n) == 1 for n in neighbour)  # cancelled before its turn: never delivered
    grid.close()


def test_an_unknown_node_is_refused(running: Any) -> None:
    with pytest.raises(TrainerError, match="unknown node"):
        running[2].send_and_receive([to(9, Frame(DescribeRequest()))])


def test_a_trainer_killed_in_a_round_fails_that_site_only_and_comes_back(running: Any) -> None:
    """kill -9 while a site trains: its lane gives an error, the other process delivers, then a new process serves it.

    What had been stored before the death comes back from the new process byte for byte.
    """
    study, pool, _, _ = running
    victim = pool.trainer("site-01")
    before, killed = victim.process, threading.Event()
    hosted = [n for n, s in pool.nodes.items() if pool.trainer(s) is victim and s != "evaluator"]
    safe = [n for n, s in pool.nodes.items() if pool.trainer(s) is not victim and s != "evaluator"]

    def kill(event: GridEvent) -> None:
        if event.kind == "started" and event.group == "kill" and event.site == "site-01" and not killed.is_set():
            killed.set()
            os.kill(before.pid, signal.SIGSTOP)  # it can answer nothing more ...
            threading.Timer(0.2, os.kill, (before.pid, signal.SIGKILL)).start()  # ... and dies with the request in hand

    grid = LocalGrid(pool, observer=kill)
    kept = Frame(study.train(2), study.arrays)
    first = replies_by_node(grid.send_and_receive([to(n, kept) for n in (*hosted, *safe)], timeout=LONG_S))
    frame = content_of(Frame(study.train(3), study.arrays))
    round_three = [Message(frame, n, "train", group_id="kill") for n in (*hosted, *safe)]
    found = replies_by_node(grid.send_and_receive(round_three, timeout=LONG_S))
    assert isinstance(found[1].message, ErrorReply)
    assert "died" in found[1].message.reason
    assert all(isinstance(found[n].message, TrainReply) for n in safe)
    repeated = replies_by_node(grid.send_and_receive([to(n, kept) for n in (*hosted, *safe)], timeout=LONG_S))
    assert {n: f.message for n, f in repeated.items()} == {n: f.message for n, f in first.items()}
    assert {n: weights_sha256(f.arrays) for n, f in repeated.items()} == {
        n: weights_sha256(f.arrays) for n, f in first.items()
    }
    second = Frame(study.train(3, attempt=2), study.arrays)
    again = replies_by_node(grid.send_and_receive([to(1, second)], timeout=LONG_S))
    assert again[1].message.outcome == "trained"
    assert (victim.starts, victim.process is before) == (2, False)
    grid.close()


@pytest.mark.slow
def test_pools_of_one_and_of_four_give_equal_models(tmp_path: Path, study_maker: Callable[..., Study]) -> None:
    """Three rounds without privacy, dropout and augmentation on: how sites share processes changes no bit."""
    results = {}
    for processes in (1, 4):
        study = study_maker(tmp_path / str(processes), sites=4)
        with make_pool(study, processes) as pool:
            assert len(pool.trainers) == processes
            grid, arrays = LocalGrid(pool), study.arrays
            for number in (1, 2, 3):
                frame = Frame(study.train(number, arrays=arrays), arrays)
                found = replies_by_node(grid.send_and_receive([to(n, frame) for n in (1, 2, 3, 4)], timeout=LONG_S))
                assert sorted(found) == [1, 2, 3, 4]
                arrays = {k: sum(found[n].arrays[k] for n in sorted(found)) / 4 for k in arrays}
            results[processes] = weights_sha256(arrays)
            grid.close()
    assert results[1] == results[4]


# the pool alone


def test_a_trainer_that_cannot_start_says_why(small_study: Callable[..., Study]) -> None:
    study = small_study()
    (study.config("site-02").cohort / "pixels.npy").write_bytes(b"short")
    pool = make_pool(study, 1)
    with pytest.raises(TrainerError, match=r"ended with code 23.*truncated"):
        pool.start()
    assert not any(t.alive for t in pool.trainers)


def test_trainers_end_with_their_pool_and_with_the_process_that_started_them(
    small_study: Callable[..., Study]
) -> None:
    """Even kill -9 of the launcher leaves no trainer behind: its end of the pipe closes."""
    pool = make_pool(small_study(sites=1), 2)
    with pool:
        first, second = pool.trainers
        assert first.process is not None
        assert first.process.stdin is not None
        first.process.stdin.close()
        assert first.process.wait(LONG_S) == 0
        assert second.alive
        assert "ready: " in second.log.read_text()
    assert second.process is not None
    assert second.process.returncode == 0
    assert not second.socket.parent.exists()
    pool.stop()


def test_the_largest_cohorts_are_spread_and_the_evaluator_shares(
    tmp_path: Path, study_maker: Callable[..., Study]
) -> None:
    study = study_maker(tmp_path, sites=3)
    pool = make_pool(study, 2)
    assert sorted(len(t.sites) for t in pool.trainers) == [2, 2]
    assert make_pool(study, 99).nodes == pool.nodes
    assert len(make_pool(study, 99).trainers) == 4
    assert 1 <= len(make_pool(study, None).trainers) <= len(os.sched_getaffinity(0))


def test_a_site_named_twice_is_refused(small_study: Callable[..., Study]) -> None:
    study = small_study(sites=1)
    file = study.files["site-01"]
    with pytest.raises(ConfigError, match="exactly once"):
        TrainerPool([file, file], log_dir=study.root, processes=1, start_timeout_s=1.0)


def test_several_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from simulations.engine.pool import trainer_environment

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert [trainer_environment(i)["CUDA_VISIBLE_DEVICES"] for i in range(4)] == ["3", "5", "3", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert trainer_environment(0)["CUDA_VISIBLE_DEVICES"] == ""
    assert trainer_environment(0)["OMP_NUM_THREADS"] == "1"
    assert trainer_environment(0)["OMP_WAIT_POLICY"] == "passive"
