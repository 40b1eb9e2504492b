"""A whole round at a site: what acts after the noise, what a phase trains, what is repeatable, what is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from client.privacy.randomness import SecureRandomness, SeededRandomness
from client.training.checks import check_training, layer_faults
from client.training.engines import trainable
from client.training.local import RoundResult, randomness_for, train_round
from client.training.sampling import oversample_positives, poisson_batches, shuffled_batches
from client.training.update import Update, add_noise, clip_by_norm
from shared_model.errors import CohortError, ConfigError, PrivacyError, TrainerError
from shared_model.fusion import FusionModel, arrays_of, patient_loss_B
from shared_model.messages import weights_sha256
from shared_model.protocol import Protocol, Terms

CPU = torch.device("cpu")
Make = Callable[..., Any]


class FixedRandomness(SecureRandomness):
    """Secret as far as the checks can tell; draws given patients, and noise that the test chooses."""

    def __init__(self, members: list[list[int]], noise: float = 0.0) -> None:
        super().__init__()
        self.members, self.noise, self.stds = iter(members), noise, []  # type: ignore[var-annotated]

    def normal(self, count: int, *, std: float, device: torch.device) -> Tensor:
        self.stds.append(std)
        return torch.full((count,), self.noise * std)

    def poisson_sample(self, population: int, *, rate: float) -> Any:
        return np.asarray(next(self.members), dtype=np.int64)


def certain_noise() -> FixedRandomness:
    """For what each number must show: drawn noise may bring a single one back to the last bit where it began."""
    return FixedRandomness([[0, 1, 4, 5]] * 4, noise=1.0)


def run(model: FusionModel, cohort: Any, protocol: Protocol, *, round_number: int = 3, randomness: Any = None,
        **more: Any) -> RoundResult:  # fmt: skip
    randomness = randomness or randomness_for(protocol, site="a", round_number=round_number)
    return train_round(
        model=model, cohort=cohort, indices=range(len(cohort)), protocol=protocol, site="a", round_number=round_number,
        device=CPU, randomness=randomness, **more,
    )  # fmt: skip


def unchecked(protocol: Protocol, part: str, **values: object) -> Protocol:
    """A protocol that its own validator would refuse, as a careless caller might build it."""
    terms: Terms = getattr(protocol, part)
    return protocol.model_copy(update={part: terms.model_copy(update=values)})


# --- repeatable without privacy, never with it -----------------------------------------------------------


@pytest.mark.parametrize("round_number", [1, 3])
def test_without_privacy_a_round_is_repeatable_to_the_bit(
    tiny_model: Make, memory_patients: Make, small_protocol: Make, round_number: int
) -> None:
    protocol = small_protocol(private=False, training__augmentation__enabled=True, training__ema_decay=0.9)
    digests, losses = [], []
    for seed_of_torch in (0, 1):
        torch.manual_seed(seed_of_torch)
        model = tiny_model()
        losses.append(run(model, memory_patients(12), protocol, round_number=round_number).loss)
        digests.append(weights_sha256(arrays_of(model)))
    assert digests[0] == digests[1] and losses[0] == losses[1]
    assert digests[0] != weights_sha256(arrays_of(tiny_model()))


def test_sites_rounds_and_seeds_differ(tiny_model: Make, memory_patients: Make, small_protocol: Make) -> None:
    protocol = small_protocol(private=False)
    digests = set()
    for seed, site, round_number in ((7, "a", 3), (8, "a", 3), (7, "b", 3), (7, "a", 4)):
        model = tiny_model()
        run(model, memory_patients(12), protocol, round_number=3,
            randomness=SeededRandomness(seed=seed, site=site, round_number=round_number))  # fmt: skip
        digests.add(weights_sha256(arrays_of(model)))
    assert len(digests) == 4


@pytest.mark.parametrize("engine", ["loop", "opacus"])
def test_with_privacy_no_two_runs_are_equal_and_no_loss_comes_out(
    tiny_model: Make, memory_patients: Make, small_protocol: Make, engine: str
) -> None:
    protocol = small_protocol(training__engine=engine, training__steps_per_round=2)
    digests = set()
    for _ in range(2):
        torch.manual_seed(0)
        model = tiny_model()
        result = run(model, memory_patients(12), protocol)
        digests.add(weights_sha256(arrays_of(model)))
        assert result.loss is None and result.steps == 2 and result.seconds > 0
        assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert len(digests) == 2


def test_training_learns_what_can_be_learned(tiny_model: Make, memory_patients: Make, small_protocol: Make) -> None:
    """Positives are brighter: without privacy the loss falls."""
    protocol = small_protocol(private=False, training__steps_per_round=15, training__sample_rate=1.0)
    model, cohort = tiny_model(zeros=True), memory_patients(24)
    first = run(model, cohort, protocol, round_number=1).loss
    for _ in range(3):
        last = run(model, cohort, protocol, round_number=1).loss
    assert last is not None and first is not None and last < 0.9 * first


# --- the private step ------------------------------------------------------------------------------------


def test_one_private_step_is_the_formula(tiny_model: Make, memory_patients: Make, small_protocol: Make) -> None:
    """w - lr (clipped sum + sigma C z) / expected batch, the expected batch being public: q times the rounded size."""
    from client.training.loop import LoopEngine

    protocol = small_protocol(training__steps_per_round=1, privacy__clip=0.3, privacy__noise_multiplier=2.0,
                              training__phases=[{"name": "f", "rounds": 1, "objective": "fusion", "learning_rate": 0.1,
                                                 "encoder_rate": 0.5}])  # fmt: skip
    model, cohort, members = tiny_model(), memory_patients(12), [0, 3, 7]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    loss = functools.partial(patient_loss_B, terms=protocol.loss, objective="fusion")
    twin, trained = tiny_model().train(), set(model.trainable_parameters("fusion"))
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_(name in trained)
    sums = LoopEngine().clipped_sum(twin, cohort.batch(members), clip=0.3, loss=loss).sums
    source = FixedRandomness([members], noise=0.7)
    run(model, cohort, protocol, round_number=1, randomness=source)
    assert source.stds == [2.0 * 0.3]
    expected = 0.25 * 40  # not 3, the true size of the batch, nor 0.25 * 12, the true size of the site
    encoder = set(model.image_parameters())
    moving = [(name, p) for name, p in model.named_parameters() if name in trained]
    for (name, p), total in zip(moving, sums, strict=True):
        rate = 0.1 * (0.5 if name in encoder else 1.0)
        wanted = before[name] - rate * (total + 0.7 * 2.0 * 0.3) / expected
        torch.testing.assert_close(p.detach(), wanted, rtol=1e-5, atol=1e-6)


def test_an_empty_batch_still_steps(tiny_model: Make, memory_patients: Make, small_protocol: Make) -> None:
    protocol = small_protocol(training__steps_per_round=3)
    model, source = tiny_model(), FixedRandomness([[], [], []], noise=1.0)
    moving = [p for name, p in model.named_parameters() if name in model.trainable_parameters("fusion")]
    before = [p.detach().clone() for p in moving]
    run(model, memory_patients(5), protocol, randomness=source)
    assert len(source.stds) == 3
    moved = [before[i] - p.detach() for i, p in enumerate(moving)]
    rates = {0.05 * 1.0 / 10.0 * 3, 0.05 * 0.1 / 10.0 * 3}  # lr sigma C / expected batch, three steps, two groups
    assert {round(float(m.mean()), 6) for m in moved} == {round(r, 6) for r in rates}


def test_a_poisoned_patient_does_not_poison_the_model(
    tiny_model: Make, memory_patients: Make, small_protocol: Make
) -> None:
    cohort = memory_patients(6)
    cohort.all.pixels_BVCHW[0] = float("nan")
    model = tiny_model()
    run(model, cohort, small_protocol(training__sample_rate=1.0))
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_without_privacy_a_poisoned_patient_is_an_error(
    tiny_model: Make, memory_patients: Make, small_protocol: Make
) -> None:
    cohort = memory_patients(6)
    cohort.all.pixels_BVCHW[0] = float("nan")
    with pytest.raises(TrainerError, match="not finite"):
        run(tiny_model(), cohort, small_protocol(private=False, training__sample_rate=1.0))


def test_batches_larger_than_memory_allows_are_the_same_step(
    tiny_model: Make, memory_patients: Make, small_protocol: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    protocol, results = small_protocol(training__steps_per_round=1), []
    for limit in (1, 1 << 30):
        monkeypatch.setattr("client.training.local.LOAD_BYTES", limit)
        model = tiny_model()
        run(model, memory_patients(8), protocol, randomness=FixedRandomness([list(range(8))], noise=0.1))
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


# --- phases, FedProx, weight decay, EMA ------------------------------------------------------------------


def test_an_image_phase_trains_the_image_branch_alone(
    tiny_model: Make, memory_patients: Make, small_protocol: Make
) -> None:
    model = tiny_model()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    run(model, memory_patients(12), small_protocol(), round_number=1, randomness=certain_noise())
    moved = {n for n, p in model.named_parameters() if not torch.equal(p.detach(), before[n])}
    assert moved == set(model.image_parameters())
    assert all(p.requires_grad for p in model.parameters()) and not model.training


def test_an_encoder_rate_of_zero_freezes_the_image_branch(
    tiny_model: Make, memory_patients: Make, small_protocol: Make
) -> None:
    phases = [{"name": "f", "rounds": 1, "objective": "fusion", "learning_rate": 0.1, "encoder_rate": 0.0}]
    model = tiny_model()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    run(model, memory_patients(12), small_protocol(training__phases=phases), round_number=1,
        randomness=certain_noise())  # fmt: skip
    moved = {n for n, p in model.named_parameters() if not torch.equal(p.detach(), before[n])}
    assert moved == set(model.trainable_parameters("fusion")) - set(model.image_parameters())


@pytest.mark.parametrize("private", [True, False])
def test_fedprox_and_weight_decay_arrive_whole(tiny_model: Make, small_protocol: Make, private: bool) -> None:
    """Both join the (noised) gradient: mu (w - w_global) and decay * w. Inside the loss they would be clipped."""
    protocol = small_protocol(private=private, training__proximal_mu=0.5, training__weight_decay=0.25)
    model = tiny_model()
    update = Update(model, protocol, 3)
    start = [p.detach().clone() for p in trainable(model)]
    shift = [torch.full_like(p, 0.125) for p in start]
    with torch.no_grad():
        torch._foreach_add_([p.data for p in trainable(model)], shift)
    moved = [p.detach().clone() for p in trainable(model)]
    update.step([torch.ones_like(p) for p in start])
    encoder = set(model.image_parameters())
    for (name, p), w, w0 in zip(model.named_parameters(), moved, start, strict=True):
        rate = 0.05 * (0.1 if name in encoder else 1.0)
        torch.testing.assert_close(p.detach(), w - rate * (1.0 + 0.5 * (w - w0) + 0.25 * w))


def test_the_moving_average_takes_the_place_of_the_last_step(tiny_model: Make, small_protocol: Make) -> None:
    model = tiny_model()
    update = Update(model, small_protocol(training__ema_decay=0.9), 3)
    average = [p.detach().clone() for p in trainable(model)]
    for step in range(1, 6):
        update.step([torch.ones_like(p) for p in average])
        weight = min(0.9, step / (step + 9))
        average = [weight * a + (1 - weight) * p.detach() for a, p in zip(average, trainable(model), strict=True)]
    last = [p.detach().clone() for p in trainable(model)]
    update.finish()
    for p, a, final in zip(trainable(model), average, last, strict=True):
        torch.testing.assert_close(p.detach(), a)
        assert not torch.equal(p.detach(), final)


def test_adamw_decays_apart_from_the_gradient(tiny_model: Make, memory_patients: Make, small_protocol: Make) -> None:
    protocol = small_protocol(training__optimizer="adamw", training__momentum=0.9, training__weight_decay=0.01)
    model = tiny_model()
    run(model, memory_patients(12), protocol)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_a_gradient_is_clipped_by_its_whole_norm() -> None:
    gradients = [torch.full((3,), 2.0), torch.full((4,), 2.0)]
    clip_by_norm(gradients, bound=1.0)
    assert float(torch.cat(gradients).norm()) == pytest.approx(1.0)
    clip_by_norm(gradients, bound=5.0)
    assert float(torch.cat(gradients).norm()) == pytest.approx(1.0)
    clip_by_norm(big := [torch.full((3,), 2.0)], bound=0.0)
    assert torch.equal(big[0], torch.full((3,), 2.0))


def test_noise_reaches_every_number_once() -> None:
    class Numbered(SecureRandomness):
        """Numbers in the place of noise, each once: two drawn ones may be equal."""

        drawn = 0

        def normal(self, count: int, *, std: float, device: torch.device) -> Tensor:
            first, self.drawn = self.drawn + 1, self.drawn + count
            return torch.arange(first, first + count) * std

    sums = [torch.zeros(3, 4), torch.zeros(2, 3, 2, 2).to(memory_format=torch.channels_last), torch.zeros(())]
    add_noise(sums, std=2.0, randomness=Numbered())
    values = torch.cat([s.flatten() for s in sums]).tolist()
    assert sorted(values) == [2.0 * number for number in range(1, 38)]


# --- who enters a step -----------------------------------------------------------------------------------


def test_poisson_batches_are_positions_of_the_site() -> None:
    indices = np.arange(100, 400)
    batches = list(poisson_batches(indices, sample_rate=0.1, steps=40, randomness=SecureRandomness()))
    assert len(batches) == 40 and len({len(b) for b in batches}) > 5
    assert all(set(b) <= set(indices) for b in batches)


def test_shuffled_batches_show_everybody_before_anybody_twice() -> None:
    indices = np.arange(50, 62)
    source = SeededRandomness(seed=1, site="a", round_number=1)
    batches = list(shuffled_batches(indices, sample_rate=0.25, steps=8, randomness=source))
    assert [len(b) for b in batches] == [3] * 8
    assert sorted(np.concatenate(batches[:4])) == sorted(np.concatenate(batches[4:])) == list(indices)
    tiny = list(shuffled_batches(indices[:1], sample_rate=0.01, steps=3, randomness=source))
    assert [list(b) for b in tiny] == [[50]] * 3


def test_oversampling_balances_and_repeats_positives_only() -> None:
    labels = np.zeros(20, dtype=np.uint8)
    labels[[3, 7]] = 1
    rows = oversample_positives(np.arange(0, 10), labels)
    counts = np.bincount(rows, minlength=20)
    assert counts[3] == counts[7] == 4 and all(counts[i] == 1 for i in (0, 1, 2, 4, 5, 6, 8, 9))
    nobody = oversample_positives(np.arange(10, 20), labels)
    assert list(nobody) == list(range(10, 20))


def test_oversampling_trains_without_privacy(tiny_model: Make, memory_patients: Make, small_protocol: Make) -> None:
    protocol = small_protocol(private=False, training__oversampling="positives")
    assert run(tiny_model(), memory_patients(12), protocol).loss is not None


# --- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["positives", "smote"])
def test_oversampling_is_refused_with_privacy(
    tiny_model: Make, memory_patients: Make, small_protocol: Make, kind: str
) -> None:
    protocol = unchecked(small_protocol(), "training", oversampling=kind)
    model = tiny_model()
    before = weights_sha256(arrays_of(model))
    with pytest.raises((PrivacyError, ConfigError), match=r"clipped once per copy|has no films"):
        run(model, memory_patients(6), protocol)
    assert weights_sha256(arrays_of(model)) == before


def test_smote_is_refused_without_privacy_too(tiny_model: Make, memory_patients: Make, small_protocol: Make) -> None:
    with pytest.raises(ConfigError, match="has no films"):
        run(tiny_model(), memory_patients(6), small_protocol(private=False, training__oversampling="smote"))


def test_seeded_noise_is_refused(tiny_model: Make, memory_patients: Make, small_protocol: Make) -> None:
    seeded = SeededRandomness(seed=1, site="a", round_number=1)
    with pytest.raises(PrivacyError, match="subtract the noise"):
        run(tiny_model(), memory_patients(6), small_protocol(), randomness=seeded)


def with_layer(model: FusionModel, layer: nn.Module) -> FusionModel:
    model.image_head = nn.Sequential(layer, model.image_head)  # type: ignore[assignment]
    return model


class TrainableBuffer(nn.Linear):
    """Keeps a running mean beside its weights."""

    def __init__(self) -> None:
        super().__init__(64, 64)
        self.register_buffer("running_mean", torch.zeros(64))


@pytest.mark.parametrize(("layer", "word"), [
    (nn.BatchNorm1d(64), "normalises one patient by the others"),
    (nn.SyncBatchNorm(64), "normalises one patient by the others"),
    (nn.InstanceNorm1d(64, track_running_stats=True), "running statistics"),
    (TrainableBuffer(), "buffers"),
])  # fmt: skip
def test_layers_that_mix_patients_are_refused(
    tiny_model: Make, memory_patients: Make, small_protocol: Make, layer: nn.Module, word: str
) -> None:
    model = with_layer(tiny_model(), layer)
    with pytest.raises(PrivacyError, match=word):
        run(model, memory_patients(6), small_protocol())
    check_training(small_protocol(private=False), model, SecureRandomness())


def test_the_fusion_model_has_no_such_layer(tiny_model: Make) -> None:
    assert layer_faults(tiny_model().train()) == []


def test_a_site_without_training_patients_is_told(
    tiny_model: Make, memory_patients: Make, small_protocol: Make
) -> None:
    with pytest.raises(CohortError, match="no training patient"):
        train_round(model=tiny_model(), cohort=memory_patients(3), indices=[], protocol=small_protocol(), site="a",
                    round_number=1, device=CPU, randomness=SecureRandomness())  # fmt: skip


def test_a_site_without_positives_trains(tiny_model: Make, memory_patients: Make, small_protocol: Make) -> None:
    cohort = memory_patients(6)
    cohort.all.labels_B.zero_()
    for private in (True, False):
        model = tiny_model()
        run(model, cohort, small_protocol(private=private))
        assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
