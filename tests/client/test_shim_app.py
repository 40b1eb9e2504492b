"""The courier's ClientApp: no torch, no state, exact conversion both ways, and an answer whatever comes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st

from client.app import ARRAYS, JSON, MESSAGE, WAITED, app, content_of, frame_of
from client.privacy import egress
from client.trainer import client
from client.trainer.server import listening
from client.trainer.service import TrainerService
from shared_model.errors import MessageError, TrainerError
from shared_model.messages import (
    DescribeReply,
    DescribeRequest,
    ErrorReply,
    Frame,
    TrainReply,
    encode,
    parse_message,
    weights_sha256,
)
from shared_model.tensors import WEIGHTS, pack

Study = Any


@pytest.fixture(autouse=True)
def identity() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1


@pytest.fixture
def socket() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mf-") as folder:
        yield Path(folder) / "t.sock"


def context(socket: Path, site: str = "site-01") -> Context:
    return Context(1, 1, {"trainer-socket": str(socket), "site": site}, RecordDict(), {})


def answer(content: RecordDict, where: Context, kind: str = "train", ttl: float = 600.0) -> Any:
    reply = app(Message(content, 1, kind, ttl=ttl), where)
    assert reply.has_content()
    return frame_of(reply.content)


def test_no_torch_is_imported_even_when_a_message_is_served(tmp_path: Path) -> None:
    code = (
        "import sys, client.app as c\n"
        "c.PATIENCE_S = 0.0\n"
        "from flwr.app import Context, Message, RecordDict\n"
        "from flwr.supercore.task_identity import TaskIdentity as T\n"
        "T.run_id = T.node_id = T.task_id = 1\n"
        "from shared_model.messages import DescribeRequest, Frame\n"
        f"node = {{'trainer-socket': {str(tmp_path / 'no.sock')[:90]!r}, 'site': 'a'}}\n"
        "message = Message(c.content_of(Frame(DescribeRequest())), 1, 'query.describe')\n"
        "c.app(message, Context(1, 1, node, RecordDict(), {}))\n"
        "print(sorted({'torch', 'opacus', 'pandas', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_train_and_describe_reach_the_trainer_and_come_back(
    small_study: Callable[..., Study], socket: Path
) -> None:
    study = small_study()
    service = TrainerService(study.config("site-01"), compute=threading.Lock())
    with listening({"site-01": service}, socket):
        who = answer(content_of(Frame(DescribeRequest())), context(socket), "query.describe")
        assert isinstance(who.message, DescribeReply)
        content = content_of(Frame(study.train(), study.arrays))
        trained = answer(content, context(socket))
        assert isinstance(trained.message, TrainReply)
        assert set(trained.arrays) == set(study.arrays)
        assert weights_sha256(answer(content, context(socket)).arrays) == weights_sha256(trained.arrays)
        other = answer(content, context(socket, "site-99"))
        assert other.message.code == TrainerError.exit_code
    service.close()


def test_a_refusal_comes_back_as_content_with_its_reason(small_study: Callable[..., Study], socket: Path) -> None:
    study = small_study()
    service = TrainerService(study.config("site-01"), compute=threading.Lock())
    with listening({"site-01": service}, socket):
        content = content_of(Frame(study.train(protocol_sha256="f" * 64), study.arrays))
        reply = app(Message(content, 1, "train"), context(socket))
    service.close()
    message = parse_message(str(reply.content.config_records[MESSAGE][JSON]))
    assert isinstance(message, ErrorReply)
    assert "not approved" in message.reason


def test_a_signed_envelope_passes_untouched_and_its_form_is_checked() -> None:
    sealed = Frame(DescribeRequest(), {}, b'{"any": "ascii text"}')
    content = content_of(sealed)
    assert frame_of(content) == sealed
    assert "envelope" not in content_of(Frame(DescribeRequest())).config_records[MESSAGE]
    content.config_records[MESSAGE]["envelope"] = "text"
    with pytest.raises(MessageError, match="envelope is of a wrong type"):
        frame_of(content)


def test_a_dead_trainer_and_a_bad_node_configuration_are_answered_in_words(
    socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.app.PATIENCE_S", 0.0)
    content = content_of(Frame(DescribeRequest()))
    assert "cannot be reached" in answer(content, context(socket), "query.describe").message.reason
    bare = Context(1, 1, {}, RecordDict(), {})
    assert "incomplete" in answer(content, bare, "query.describe").message.reason


def test_a_reply_says_how_long_its_message_waited_for_the_trainer(
    socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.app.wait_for", lambda socket, patience: 2.5)
    reply = app(Message(content_of(Frame(DescribeRequest())), 1, "query.describe"), context(socket))
    assert reply.content.config_records[MESSAGE][WAITED] == 2.5
    assert isinstance(frame_of(reply.content).message, ErrorReply)  # nobody listens; it waited all the same
    bare = app(Message(content_of(Frame(DescribeRequest())), 1, "query.describe"), Context(1, 1, {}, RecordDict(), {}))
    assert bare.content.config_records[MESSAGE][WAITED] == 0.0


def test_a_trainer_that_is_just_being_started_is_waited_for(socket: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed trainer is back in seconds; all attempts of a round are used up before that if each fails at once."""
    looked = threading.Event()
    listens = client.listens

    def look(path: Path) -> bool:
        found = listens(path)
        looked.set()
        return found

    monkeypatch.setattr(client, "listens", look)
    monkeypatch.setattr("client.app.PATIENCE_S", 120.0)
    with ThreadPoolExecutor(1) as courier:
        reply = courier.submit(answer, content_of(Frame(DescribeRequest())), context(socket, "a"), "query.describe")
        assert looked.wait(120)  # nobody listens yet
        with listening({"a": Describes()}, socket):  # type: ignore[dict-item]
            assert reply.result(120).message.site == "a"


class Describes:
    """A trainer that only says who it is."""

    def exchange(self, data: bytes, *, wanted: Callable[[], bool]) -> bytes:
        reply = DescribeReply(site="a", role="site", release="0", protocols=(), device="cpu")
        return egress.Released(encode(Frame(reply)), seal=egress._SEAL)


def test_a_message_that_has_lived_too_long_is_not_sent_on(socket: Path) -> None:
    message = Message(content_of(Frame(DescribeRequest())), 1, "query.describe", ttl=10.0)
    message.metadata.created_at = time.time() - 20.0
    reply = frame_of(app(message, context(socket)).content)
    assert isinstance(reply.message, ErrorReply)
    assert "outlived" in reply.message.reason and "this one may be ahead" in reply.message.reason


@pytest.mark.parametrize(("ahead", "passed"), [(4.0, True), (6000.0, False)])
def test_a_message_from_the_future_tells_that_this_clock_is_behind(socket: Path, ahead: float, passed: bool) -> None:
    message = Message(content_of(Frame(DescribeRequest())), 1, "query.describe", ttl=1200.0)
    message.metadata.created_at = time.time() + ahead
    with listening({"a": Describes()}, socket):  # type: ignore[dict-item]
        reply = frame_of(app(message, context(socket, "a")).content)
    if passed:
        assert isinstance(reply.message, DescribeReply)
    else:
        assert isinstance(reply.message, ErrorReply) and reply.message.code == TrainerError.exit_code
        assert "this site's clock is behind" in reply.message.reason and "NTP" in reply.message.reason


floats = st.floats(width=32, allow_nan=True, allow_infinity=True)


@settings(max_examples=60)
@given(st.dictionaries(st.text(min_size=1, max_size=20), st.lists(floats, max_size=12), max_size=5), st.booleans())
def test_tensors_survive_the_way_there_and_back_bit_by_bit(values: dict[str, list[float]], square: bool) -> None:
    arrays = {}
    for name, numbers in values.items():
        array = np.array(numbers, dtype=np.float32)
        arrays[name] = array.reshape(2, -1, order="F").copy(order="F") if square and len(numbers) % 2 == 0 else array
    back = frame_of(content_of(Frame(DescribeRequest(), arrays))).arrays
    assert set(back) == set(arrays)
    for name, array in arrays.items():
        assert back[name].shape == array.shape
        assert np.ascontiguousarray(back[name]).tobytes() == np.ascontiguousarray(array).tobytes()


def raw(data: bytes, part: str = WEIGHTS) -> RecordDict:
    content = content_of(Frame(DescribeRequest()))
    content[ARRAYS] = ArrayRecord({part: Array("uint8", (len(data),), "numpy.ndarray", data)})
    return content


def test_a_message_is_one_array_for_flower_however_many_tensors_it_has() -> None:
    """Each array is two objects of Flower's, and each object a request at every hop."""
    arrays = {f"layer.{i}": np.full(3, i, np.float32) for i in range(50)}
    assert list(content_of(Frame(DescribeRequest(), arrays)).array_records[ARRAYS]) == ["weights"]
    both = {**arrays, "correction.layer.1": np.ones(3, np.float32)}
    content = content_of(Frame(DescribeRequest(), both))
    assert list(content.array_records[ARRAYS]) == ["weights", "correction"]
    assert weights_sha256(frame_of(content).arrays) == weights_sha256(both)


def test_tensors_that_are_not_what_they_claim_are_refused() -> None:
    good = pack({"w": np.zeros(2, np.float32)})
    for data in (good[:-1], good + b"x", good[:20], b"", good.replace(b"[2]", b"[9]"), good.replace(b"F32", b"F64")):
        with pytest.raises(MessageError, match="tensors are damaged"):
            frame_of(raw(data))
    with pytest.raises(MessageError, match="unknown block"):
        frame_of(raw(good, "more"))
    assert frame_of(raw(good)).arrays["w"].shape == (2,)


def test_content_that_is_no_message_is_refused() -> None:
    empty, wrong, unknown = RecordDict(), RecordDict(), RecordDict()
    wrong[MESSAGE] = ConfigRecord({JSON: 3})
    unknown[MESSAGE] = ConfigRecord({JSON: '{"kind": "run_code"}'})
    for content in (empty, wrong, unknown):
        with pytest.raises(MessageError):
            frame_of(content)
