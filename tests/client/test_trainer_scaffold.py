"""SCAFFOLD at a site: the correction acts after the noise, with one length for all tensors, and names the request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from client.privacy.randomness import SecureRandomness
from client.trainer.config import SiteConfig
from client.trainer.service import TrainerService
from client.training.local import randomness_for, train_round
from shared_model.errors import MessageError, PrivacyError, ProtocolError, WeightsError
from shared_model.fusion import arrays_of
from shared_model.messages import CORRECTION, ErrorReply, Frame, TrainReply, decode, encode, weights_sha256

Make = Callable[..., Any]
ONE_PHASE = [{"name": "f", "rounds": 3, "objective": "fusion", "learning_rate": 0.1, "encoder_rate": 0.5}]
SCAFFOLD = {"federation__strategy": "scaffold", "training__momentum": 0.0}


class FixedRandomness(SecureRandomness):
    """Secret as far as the checks can tell; everybody takes part, and the noise is as large as its scale."""

    def normal(self, count: int, *, std: float, device: torch.device) -> torch.Tensor:
        return torch.full((count,), std)

    def poisson_sample(self, population: int, *, rate: float) -> Any:
        return np.arange(population)


@pytest.mark.parametrize("private", [False, True])
def test_a_step_is_the_gradient_with_its_noise_and_then_the_correction(
    tiny_model: Make, memory_patients: Make, small_protocol: Make, private: bool
) -> None:
    """All tensors move by the round's rate times the correction, those that learn at a lower rate as well."""
    protocol = small_protocol(private=private, **SCAFFOLD, training__phases=ONE_PHASE, training__steps_per_round=1)
    random = np.random.default_rng(0)
    shift = {name: random.normal(size=a.shape).astype(np.float32) for name, a in arrays_of(tiny_model()).items()}
    ends = []
    for correction in (None, shift):
        model, cohort = tiny_model(), memory_patients(8)
        seeded = randomness_for(protocol, site="a", round_number=1)
        train_round(
            model=model, cohort=cohort, indices=range(8), protocol=protocol, site="a", round_number=1,
            device=torch.device("cpu"), correction=correction,
            randomness=FixedRandomness() if private else seeded,
        )  # fmt: skip
        ends.append(arrays_of(model))
    trained = set(tiny_model().trainable_parameters("fusion"))
    for name, plain in ends[0].items():
        wanted = -0.1 * shift[name] if name in trained else np.zeros_like(plain)
        assert np.allclose(ends[1][name] - plain, wanted, rtol=1e-3, atol=1e-5), name


def test_a_frozen_tensor_takes_no_correction(tiny_model: Make, memory_patients: Make, small_protocol: Make) -> None:
    phases = [{**ONE_PHASE[0], "encoder_rate": 0.0}]
    protocol = small_protocol(**SCAFFOLD, training__phases=phases, training__steps_per_round=1)
    model = tiny_model()
    before = arrays_of(model)
    train_round(
        model=model, cohort=memory_patients(8), indices=range(8), protocol=protocol, site="a", round_number=1,
        device=torch.device("cpu"), correction={name: np.ones_like(a) for name, a in before.items()},
        randomness=FixedRandomness(),
    )  # fmt: skip
    still = {name for name, array in arrays_of(model).items() if np.array_equal(array, before[name])}
    assert still == set(before) - set(model.trainable_parameters("fusion")) | set(model.image_parameters())


# --- the service ---------------------------------------------------------------------------------------------------


@pytest.fixture
def opened() -> Iterator[Callable[[SiteConfig], TrainerService]]:
    services: list[TrainerService] = []

    def open_one(config: SiteConfig) -> TrainerService:
        services.append(TrainerService(config, compute=threading.Lock()))
        return services[-1]

    yield open_one
    for service in services:
        service.close()


def request(study: Any, value: float, **changes: Any) -> bytes:
    beside = {name: np.full_like(array, value) for name, array in study.arrays.items()}
    message = study.train(**{"correction_sha256": weights_sha256(beside), **changes})
    return encode(Frame(message, {**study.arrays, **{f"{CORRECTION}{n}": a for n, a in beside.items()}}))


def answer(service: TrainerService, data: bytes) -> Frame:
    return decode(service.exchange(data, wanted=lambda: True))


def test_the_correction_is_part_of_the_requests_identity(small_study: Make, opened: Make) -> None:
    study = small_study(**SCAFFOLD)
    service = opened(study.config("site-01"))
    first = answer(service, request(study, 0.01))
    assert isinstance(first.message, TrainReply), first.message
    beside = {name: np.full_like(array, 0.01) for name, array in study.arrays.items()}
    assert first.message.correction_sha256 == weights_sha256(beside)
    assert first.arrays.keys() == study.arrays.keys()
    service.close()
    again = opened(study.config("site-01"))
    assert weights_sha256(answer(again, request(study, 0.01)).arrays) == weights_sha256(first.arrays)
    other = answer(again, request(study, 0.02))
    assert isinstance(other.message, ErrorReply) and other.message.code == PrivacyError.exit_code


def test_what_is_no_correction_of_this_model_is_refused_and_costs_nothing(small_study: Make, opened: Make) -> None:
    study = small_study(private=True, **SCAFFOLD)
    service, weights = opened(study.config("site-01")), study.arrays
    zeros = {f"{CORRECTION}{name}": np.zeros_like(array) for name, array in weights.items()}
    infinite = {name: array + np.inf for name, array in zeros.items()}
    name = next(iter(zeros))
    sha256 = weights_sha256({key.removeprefix(CORRECTION): array for key, array in zeros.items()})
    for claimed, beside, code in (
        (None, {}, ProtocolError), (sha256, {}, ProtocolError), (None, zeros, ProtocolError),
        ("0" * 64, zeros, WeightsError), ("0" * 64, infinite, MessageError),
        (sha256, {**zeros, name: zeros[name][:1]}, MessageError),
        (sha256, {key: array for key, array in zeros.items() if key != name}, MessageError),
        (sha256, {**zeros, f"{CORRECTION}more": zeros[name]}, MessageError),
    ):  # fmt: skip
        data = encode(Frame(study.train(correction_sha256=claimed), {**weights, **beside}))
        reply = answer(service, data).message
        assert isinstance(reply, ErrorReply) and reply.code == code.exit_code, (code, reply)
    assert not (study.config("site-01").state / "ledger.json").exists()


def test_another_strategy_takes_no_correction(small_study: Make, opened: Make) -> None:
    study = small_study()
    reply = answer(opened(study.config("site-01")), request(study, 0.0)).message
    assert isinstance(reply, ErrorReply) and reply.code == ProtocolError.exit_code
    assert "does not fit the strategy fedavg" in reply.reason
