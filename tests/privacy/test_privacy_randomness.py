"""The secret source: distribution, independence, no repetition after a fork, a copy or a seed."""

from __future__ import annotations

import copy
import os
import pickle

import numpy as np
import pytest
import torch
from scipy import stats

from client.privacy.randomness import CHUNK, SecureRandomness, SeededRandomness

# Nobody can seed the source: good noise is accused by each figure below in one run of 10^8, all of them together in one
# of 10^7. The samples are as large as that needs to see no less.
ALPHA = 1e-8
SIGMAS = float(stats.norm.isf(ALPHA / 2))


def test_noise_is_gaussian_of_the_asked_spread() -> None:
    noise = SecureRandomness().normal(1_000_000, std=2.5).double().numpy() / 2.5
    low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], noise.size) / noise.size
    assert low < np.mean(noise**2) < high
    assert abs(np.mean(noise)) < SIGMAS / np.sqrt(noise.size)
    assert stats.kstest(noise[:200_000], "norm").pvalue > ALPHA
    assert abs(stats.kurtosis(noise)) < 6 * np.sqrt(24 / noise.size)
    assert noise.max() > 4 and noise.min() < -4


@pytest.mark.parametrize("lag", [1, 2, CHUNK["cpu"] // 2, CHUNK["cpu"] - 1, CHUNK["cpu"]])
def test_noise_of_neighbours_is_independent(lag: int) -> None:
    """Cosine and sine of one Box-Muller pair go into neighbouring numbers: neither they nor their squares correlate."""
    noise = SecureRandomness().normal(400_000, std=1.0).double().numpy()
    limit = 6 / np.sqrt(noise.size - lag)
    assert abs(np.corrcoef(noise[:-lag], noise[lag:])[0, 1]) < limit
    assert abs(np.corrcoef(noise[:-lag] ** 2, noise[lag:] ** 2)[0, 1]) < limit


@pytest.mark.parametrize("count", [0, 1, 2, 3, CHUNK["cpu"] + 1])
def test_any_count_is_given_and_finite(count: int) -> None:
    noise = SecureRandomness().normal(count, std=1.0)
    assert noise.shape == (count,) and noise.dtype == torch.float32 and bool(torch.isfinite(noise).all())


def test_a_single_number_has_unit_variance() -> None:
    source = SecureRandomness()
    values = np.array([float(source.normal(1, std=1.0)) for _ in range(6000)])
    low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], values.size) / values.size
    assert low < np.mean(values**2) < high


def test_seeding_torch_does_not_repeat_the_noise() -> None:
    source, draws = SecureRandomness(), []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        draws.append(source.normal(64, std=1.0))
        draws.append(SecureRandomness().normal(64, std=1.0))
    assert len({tuple(d.tolist()) for d in draws}) == 4


def test_poisson_sample_takes_each_patient_by_herself_at_the_rate() -> None:
    source, population, rate, draws = SecureRandomness(), 400, 0.0625, 800
    present = np.zeros((draws, population))
    for row in present:
        sample = source.poisson_sample(population, rate=rate)
        assert np.all(np.diff(sample) > 0)
        row[sample] = 1
    sizes = present.sum(1)
    total = stats.binomtest(int(present.sum()), draws * population, rate).pvalue
    assert total > ALPHA
    # Independent patients: the size of a batch varies as a binomial does (a shuffled batch would not vary at all).
    low, high = stats.chi2.ppf([ALPHA / 2, 1 - ALPHA / 2], draws - 1) / (draws - 1)
    assert low < sizes.var(ddof=1) / (population * rate * (1 - rate)) < high
    assert abs(np.corrcoef(present[:-1].ravel(), present[1:].ravel())[0, 1]) < 6 / np.sqrt(present[1:].size)


def test_rate_one_takes_everybody_and_nobody_is_drawn_from_nobody() -> None:
    source = SecureRandomness()
    assert source.poisson_sample(7, rate=1.0).tolist() == list(range(7))
    assert source.poisson_sample(0, rate=0.5).tolist() == []


def test_permutation_holds_everybody_once() -> None:
    assert sorted(SecureRandomness().permutation(50).tolist()) == list(range(50))


def test_a_forked_process_draws_other_noise() -> None:
    source = SecureRandomness()
    source.normal(8, std=1.0)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, source._words(4).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    theirs = np.frombuffer(os.read(reader, 64), dtype=np.uint64)
    os.close(reader)
    assert theirs.size == 4 and not np.array_equal(theirs, source._words(4))


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_the_secret_source_cannot_be_copied(duplicate: object) -> None:
    with pytest.raises(TypeError, match="must not be copied"):
        duplicate(SecureRandomness())  # type: ignore[operator]


def test_seeded_randomness_is_a_function_of_seed_site_and_round() -> None:
    def draw(seed: int, site: str, round_number: int) -> tuple[float, ...]:
        source = SeededRandomness(seed=seed, site=site, round_number=round_number)
        augmentation = torch.rand(2, generator=source.generator())
        return (*source.normal(2, std=1.0).tolist(), *source.permutation(9).tolist(), *augmentation.tolist())

    assert draw(1, "a", 1) == draw(1, "a", 1)
    assert len({draw(1, "a", 1), draw(2, "a", 1), draw(1, "b", 1), draw(1, "a", 2), draw(1 + 2**32, "a", 1)}) == 5
    assert not SeededRandomness(seed=1, site="a", round_number=1).secret and SecureRandomness().secret
