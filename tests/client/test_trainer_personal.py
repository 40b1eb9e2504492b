"""Tensors that stay at a site: which, how they survive, what goes out in their place, and which copy is judged."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.trainer import evaluate as evaluate_module
from client.trainer import train as train_module
from client.trainer.config import SiteConfig
from client.trainer.personal import PersonalCopies, generic, personal_names
from client.trainer.service import TrainerService
from server.aggregation.gate import inspect, norm_bound
from shared_model.errors import StorageError
from shared_model.fusion import arrays_of
from shared_model.messages import ErrorReply, Frame, decode, encode, weights_sha256

Make = Callable[..., Any]


@pytest.fixture
def opened() -> Iterator[Callable[[SiteConfig], TrainerService]]:
    services: list[TrainerService] = []

    def open_one(config: SiteConfig) -> TrainerService:
        services.append(TrainerService(config, compute=threading.Lock()))
        return services[-1]

    yield open_one
    for service in services:
        service.close()


def exchange(service: TrainerService, message: Any, arrays: Any) -> bytes:
    return service.exchange(encode(Frame(message, arrays)), wanted=lambda: True)


def train(service: TrainerService, study: Any, number: int, arrays: Any) -> dict[str, Any]:
    frame = decode(exchange(service, study.train(number, arrays=arrays), arrays))
    assert not isinstance(frame.message, ErrorReply), frame.message
    return dict(frame.arrays)


def copies(study: Any) -> dict[str, bytes]:
    folder = study.config("site-01").state / "personal"
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


# --- which ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", ["gated", "early", "mid", "late"])
def test_heads_and_norms_are_these(tiny_model: Make, fusion: str) -> None:
    model = tiny_model(fusion)
    assert personal_names(model, "none") == ()
    heads, norms = set(personal_names(model, "head")), set(personal_names(model, "fedbn_like"))
    joint = set() if fusion == "late" else {"joint.head.hidden", "joint.head.final"}
    assert {name.rpartition(".")[0] for name in heads} == {"image_head", "clinical_head"} | joint
    assert all("norm" in name for name in norms) and "clinical.norm.weight" in norms
    assert {name for name, _ in model.named_parameters() if "norm" in name} == norms


def test_what_goes_out_is_what_came_and_the_sites_step() -> None:
    one, two, five = (np.full(3, value, dtype=np.float32) for value in (1.0, 2.0, 5.0))
    sent = generic({"own": one, "shared": one}, {"own": two}, {"own": five, "shared": five})
    assert (sent["own"] == 4.0).all() and (sent["shared"] == 5.0).all()
    trained = np.array([0.1], dtype=np.float32)
    untouched = generic({"own": one[:1]}, {"own": one[:1]}, {"own": trained})["own"]
    assert untouched is trained  # no rounding where none is due


# --- how they survive ----------------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path, tiny_model: Make, small_protocol: Make) -> Any:
    """Copies of rounds 2 and 4, with the value of their round everywhere."""
    protocol = small_protocol(federation__personal="head")
    store = PersonalCopies(tmp_path / "own", protocol, tiny_model())
    for number in (2, 4):
        store.make_room(number)
        store.keep(number, {name: np.full_like(a, number) for name, a in arrays_of(tiny_model()).items()})
    return store, protocol


def test_a_round_starts_from_the_latest_copy_before_it(kept: Any, tiny_model: Make) -> None:
    store, _ = kept
    for up_to, value in ((1, None), (2, 2), (3, 2), (4, 4), (9, 4)):
        model, before = tiny_model(), arrays_of(tiny_model())
        start = store.put_on(model, up_to=up_to)
        after = arrays_of(model)
        assert set(start) == set(personal_names(model, "head"))
        for name, array in after.items():
            expected = before[name] if value is None or name not in start else np.full_like(array, value)
            assert np.array_equal(array, expected)
            assert name not in start or np.array_equal(start[name], array)


@pytest.mark.parametrize("damage", ["cut", "bit", "huge", "foreign", "other round", "other study"])
def test_a_damaged_copy_is_refused_in_words(kept: Any, tmp_path: Path, tiny_model: Make, damage: str) -> None:
    store, protocol = kept
    path = tmp_path / "own" / "round-000004.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= damage == "bit"
    changed = {"cut": data[:-5], "bit": data, "huge": data + bytes(1 << 18), "foreign": b"x" * 100}
    path.write_bytes(changed.get(damage, data))
    if damage == "other round":
        path.write_bytes((tmp_path / "own" / "round-000002.safetensors").read_bytes())
    if damage == "other study":
        store = PersonalCopies(tmp_path / "own", protocol.model_copy(update={"seed": 9}), tiny_model())
    with pytest.raises(StorageError, match="own tensors of round 4 are"):
        store.put_on(tiny_model(), up_to=4)


def test_a_full_disk_is_noticed_before_anything_is_charged(
    small_study: Make, opened: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small_study(private=True, federation__personal="head")
    service = opened(study.config("site-01"))

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("client.trainer.replies.ReplyStore.make_room", lambda *_: None)
        patch.setattr("client.trainer.personal.os.posix_fallocate", full)
        reply = decode(exchange(service, study.train(), study.arrays)).message
    assert isinstance(reply, ErrorReply) and "nothing was charged" in reply.reason
    assert not (study.config("site-01").state / "ledger.json").exists()


# --- rounds --------------------------------------------------------------------------------------------------------


def test_two_rounds_and_the_same_bits_after_a_crash_between_copy_and_reply(
    small_study: Make, opened: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small_study(federation__personal="head")
    service = opened(study.config("site-01"))
    first = train(service, study, 1, study.arrays)
    second = exchange(service, study.train(2), study.arrays)
    assert exchange(service, study.train(2), study.arrays) == second
    expected = copies(study)
    assert list(expected) == ["round-000001.safetensors", "round-000002.safetensors"]

    crashed = small_study("crashed", federation__personal="head")
    assert crashed.protocol.sha256 == study.protocol.sha256
    service = opened(crashed.config("site-01"))
    assert weights_sha256(train(service, crashed, 1, crashed.arrays)) == weights_sha256(first)

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for place in ("train_round", "generic"):  # before the copy is written, and after it, before the reply is stored
        with monkeypatch.context() as patch:
            patch.setattr(train_module, place, dies)
            with pytest.raises(KeyboardInterrupt):
                exchange(service, crashed.train(2), crashed.arrays)
        service.close()
        service = opened(crashed.config("site-01"))
    again = decode(exchange(service, crashed.train(2), crashed.arrays))
    assert weights_sha256(again.arrays) == weights_sha256(decode(second).arrays)
    assert copies(crashed) == expected


@pytest.mark.parametrize("private", [False, True])
def test_a_site_goes_on_from_its_own_tensors_and_sends_its_step_alone(
    small_study: Make, opened: Make, private: bool
) -> None:
    study = small_study(private=private, federation__personal="head", training__momentum=0.0)
    service = opened(study.config("site-01"))
    first = train(service, study, 1, study.arrays)
    own = {name for name in study.arrays if name.startswith(("image_head.", "clinical_head.", "joint.head."))}
    arrays = {name: np.asarray(array + 1.0, dtype=np.float32) for name, array in first.items()}  # with others' updates
    second = train(service, study, 2, arrays)
    bound = norm_bound(study.protocol, 2, arrays, site="site-01")
    assert inspect(second, arrays, norm_bound=bound) is None  # although the site's own heads lie 1 off
    folder = next((study.config("site-01").state / "personal").iterdir())
    model = service.site._models.take(study.protocol, service.site.device)[0]
    store = PersonalCopies(folder, study.protocol, model)
    before, after = store.put_on(model, up_to=1), store.put_on(model, up_to=2)
    assert set(before) == own
    for name in own:
        assert np.array_equal(before[name], first[name])  # the first round had nothing else to start from
        assert np.array_equal(second[name], arrays[name] + (after[name] - before[name]))
    assert any(not np.array_equal(before[name], after[name]) for name in own)


def test_a_site_is_judged_with_its_copy_of_the_chosen_round(
    small_study: Make, opened: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small_study(federation__personal="head")
    service = opened(study.config("site-01"))
    for number in (1, 2):
        train(service, study, number, study.arrays)
    seen: list[dict[str, Any]] = []
    original = evaluate_module.score_patients

    def scores(site: Any, model: Any, *rest: Any, **more: Any) -> Any:
        seen.append(arrays_of(model))
        return original(site, model, *rest, **more)

    monkeypatch.setattr(evaluate_module, "score_patients", scores)
    reports = []
    for number in (1, 2, 1):
        reply = decode(exchange(service, study.evaluate("site", round_number=number), study.arrays)).message
        reports.append(json.loads(reply.report))  # type: ignore[union-attr]
    assert reports[0] == reports[2]
    first, second, again = (one["image_head.weight"] for one in seen)
    assert np.array_equal(first, again) and not np.array_equal(first, second)
    assert np.array_equal(seen[0]["encoder.stem.weight"], study.arrays["encoder.stem.weight"])


def test_the_evaluator_judges_the_generic_copy(small_study: Make, opened: Make) -> None:
    study = small_study(federation__personal="head")
    plain = small_study("plain")
    reports = []
    for one in (study, plain):
        reply = decode(exchange(opened(one.config("evaluator")), one.evaluate("selection"), one.arrays)).message
        reports.append(json.loads(reply.report))  # type: ignore[union-attr]
    assert reports[0] == reports[1]
