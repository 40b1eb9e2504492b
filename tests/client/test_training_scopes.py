"""How much of the encoder a phase trains, films that are encoded once, and what each phase spends."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from client.training import features as features_module
from client.training.features import EncodedCohort, FeatureCache
from client.training.local import randomness_for, train_round
from client.training.loop import LoopEngine
from shared_model.fusion import patient_loss_B
from tests.client.test_training_local import FixedRandomness, certain_noise

Make = Callable[..., Any]
CPU = torch.device("cpu")


def phase(**values: Any) -> dict[str, Any]:
    return {"name": "p", "rounds": 1, "objective": "fusion", "learning_rate": 0.1, "encoder_rate": 1.0, **values}


def run(model: Any, cohort: Any, protocol: Any, *, round_number: int = 1, randomness: Any = None, **more: Any) -> Any:
    return train_round(
        model=model, cohort=cohort, indices=range(len(cohort)), protocol=protocol, site="a",
        round_number=round_number, device=CPU,
        randomness=randomness or randomness_for(protocol, site="a", round_number=round_number), **more,
    )  # fmt: skip


def moved(model: Any, before: dict[str, torch.Tensor]) -> set[str]:
    return {n for n, p in model.named_parameters() if not torch.equal(p.detach(), before[n])}


def copies(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("scope", ["linear", "features", "adapters", "all"])
def test_a_scope_moves_its_part_of_the_encoder_and_all_behind_it(
    tiny_model: Make, memory_patients: Make, small_protocol: Make, scope: str, private: bool
) -> None:
    protocol = small_protocol(private=private, training__phases=[phase(scope=scope)])
    model = tiny_model()
    before = copies(model)
    run(model, memory_patients(14), protocol, randomness=certain_noise() if private else None)
    names = set(before)
    encoder = {name for name in names if name.startswith("encoder.")}
    adapters = {name for name in encoder if "norm" in name or name.startswith("encoder.pooling.")}
    linear = {n for n in names if n.startswith(("image_direct.", "clinical_direct."))}
    deep = {n for n in names if not n.startswith("image_direct.")}  # beside the image's head it would say nothing new
    wanted = {
        "linear": linear, "features": deep - encoder, "adapters": (deep - encoder) | adapters, "all": deep,
    }[scope]  # fmt: skip
    found = moved(model, before)
    # Adding a constant to all scores changes no attention: without noise these have no gradient.
    assert found <= wanted and all(name.endswith("score.bias") for name in wanted - found)
    assert 0 < len(adapters) < len(encoder) and not model.encoded


@pytest.mark.parametrize("private", [True, False])
def test_a_clinical_phase_trains_the_table_s_branch_alone(
    tiny_model: Make, memory_patients: Make, small_protocol: Make, private: bool
) -> None:
    model = tiny_model()
    before = copies(model)
    protocol = small_protocol(private=private, training__phases=[phase(objective="clinical")])
    run(model, memory_patients(14), protocol, randomness=certain_noise() if private else None)
    assert moved(model, before) == {n for n in before if n.startswith("clinical")}


@pytest.mark.parametrize("fusion", ["gated", "early", "mid", "late"])
def test_descriptors_give_the_gradients_of_the_films(
    tiny_model: Make, memory_patients: Make, small_protocol: Make, fusion: str
) -> None:
    """Encoding once changes nothing but the time: every patient's clipped gradient is the one that her films give."""
    protocol, cohort = small_protocol(), memory_patients(11)
    model = tiny_model(fusion)
    model.train()
    wanted = set(model.trainable_parameters("fusion", "features"))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in wanted)
    loss = functools.partial(patient_loss_B, terms=protocol.loss, objective="fusion")
    engine = LoopEngine()
    films = engine.clipped_sum(model, cohort.batch(range(11)), clip=0.5, loss=loss).sums
    encoded = FeatureCache(cohort, load_bytes=1 << 16).encoded(model, np.arange(11), device=CPU)
    model.encoded = True
    descriptors = engine.clipped_sum(model, encoded.batch(range(11)), clip=0.5, loss=loss).sums
    for one, two in zip(films, descriptors, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_films_are_encoded_once_for_each_encoder(tiny_model: Make, memory_patients: Make) -> None:
    cohort, calls = memory_patients(10), []
    cache = FeatureCache(cohort, load_bytes=1 << 30)
    model = tiny_model()
    encode = model.encode
    model.encode = lambda pixels, mask: calls.append(len(mask)) or encode(pixels, mask)
    cache.encoded(model, np.array([0, 3, 5]), device=CPU)
    cache.encoded(model, np.array([3, 5, 9]), device=CPU)
    assert calls == [3, 1]  # only the woman that it had not seen
    with torch.no_grad():
        model.image_head.bias.add_(1.0)  # not of the encoder
        cache.encoded(model, np.array([0, 9]), device=CPU)
        assert calls == [3, 1]
        model.encoder.stem.weight.add_(0.1)
    cache.encoded(model, np.array([0]), device=CPU)
    assert calls == [3, 1, 1]


def test_descriptors_of_few_encoders_are_kept(tiny_model: Make, memory_patients: Make) -> None:
    cache, model = FeatureCache(memory_patients(4), load_bytes=1 << 30), tiny_model()
    for _ in range(features_module.KEPT + 3):
        with torch.no_grad():
            model.encoder.stem.weight.add_(0.1)
        cache.encoded(model, np.arange(4), device=CPU)
    assert len(cache._kept) == features_module.KEPT


def test_as_on_a_gpu_films_are_encoded_in_passes_of_one_size_to_the_same_descriptors(
    tiny_model: Make, memory_patients: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, cohort, indices = tiny_model(), memory_patients(11), np.arange(11)
    wanted = FeatureCache(cohort, load_bytes=1 << 16).encoded(model, indices, device=CPU).batch(indices)
    monkeypatch.setattr(features_module, "ONE_SIZE", ("cpu",))
    films: set[int] = set()
    model.encoder.register_forward_hook(lambda module, given, output: films.add(len(given[0])))
    found = FeatureCache(cohort, load_bytes=1 << 16).encoded(model, indices, device=CPU).batch(indices)
    assert len(films) == 1 and films.pop() < 44, "more than one pass, all alike"
    torch.testing.assert_close(found.pixels_BVCHW, wanted.pixels_BVCHW, rtol=1e-5, atol=1e-6)
    assert bool((found.pixels_BVCHW[~found.view_mask_BV] == 0).all())


def test_a_woman_without_films_has_empty_descriptors(tiny_model: Make, memory_patients: Make) -> None:
    cohort = memory_patients(6)
    encoded = FeatureCache(cohort, load_bytes=1 << 30).encoded(tiny_model(), np.arange(6), device=CPU)
    assert isinstance(encoded, EncodedCohort)
    batch = encoded.batch([2])  # `make_patients`: table only
    assert not batch.view_mask_BV.any() and not batch.pixels_BVCHW.any()


def test_each_phase_has_its_own_noise_rate_and_steps(
    tiny_model: Make, memory_patients: Make, small_protocol: Make
) -> None:
    phases = [
        phase(scope="features", noise_factor=1.0),
        phase(name="q", scope="adapters", noise_factor=2.5, sample_rate=0.5, steps_per_round=3),
    ]
    protocol = small_protocol(
        training__phases=phases, training__steps_per_round=2, privacy__clip=0.5, privacy__noise_multiplier=1.2
    )
    cohort = memory_patients(8)
    for number, (steps, std, rate) in enumerate([(2, 0.6, 0.25), (3, 1.5, 0.5)], start=1):
        source = FixedRandomness([[0, 1]] * steps, noise=0.1)
        result = run(tiny_model(), cohort, protocol, round_number=number, randomness=source)
        assert source.stds == pytest.approx([std] * steps) and result.steps == steps
        assert protocol.expected_batch("a", number) == rate * 40
    assert protocol.mechanisms(2) == ((1.2, 0.25, 2), (3.0, 0.5, 3))


def test_a_features_phase_costs_the_encoder_nothing_after_the_first_round(
    tiny_model: Make, memory_patients: Make, small_protocol: Make
) -> None:
    protocol = small_protocol(training__phases=[phase(scope="features", rounds=3)])
    cohort, model = memory_patients(9), tiny_model()
    cache, seen = FeatureCache(cohort, load_bytes=1 << 30), []
    encode = model.encode
    model.encode = lambda pixels, mask: seen.append(len(mask)) or encode(pixels, mask)
    for number in (1, 2, 3):
        run(model, cohort, protocol, round_number=number, features=cache)
    assert sum(seen) == 9
