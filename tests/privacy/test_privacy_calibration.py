"""Noise for a wanted epsilon: the least of four decimals, found with few questions to the accountant."""

from __future__ import annotations

import pytest

from client.privacy import accountant, calibration
from client.privacy.accountant import COARSE, FINE, Account
from client.privacy.calibration import LEAST, Spending, _least, noise_multiplier_for, noise_multipliers_for
from shared_model.errors import PrivacyError

DELTA = 1e-5


def spent(sigma: float, *, rate: float, steps: int) -> float:
    return Account().add(noise_multiplier=sigma, sample_rate=rate, steps=steps).epsilon(delta=DELTA)


# The second: between 1.991 and 2 there is no bound, because the fine accounting begins there; 1.0: the bound is fine.
@pytest.mark.parametrize(("epsilon", "rate", "steps"), [(3.0, 0.125, 96), (1.995, 0.1, 40), (1.0, 0.125, 16)])
def test_it_is_the_least_of_four_decimals(epsilon: float, rate: float, steps: int) -> None:
    sigma = noise_multiplier_for(epsilon=epsilon, delta=DELTA, sample_rate=rate, steps=steps)
    less = round(sigma - 1e-4, 4)
    assert spent(sigma, rate=rate, steps=steps) <= epsilon < spent(less, rate=rate, steps=steps)


def test_the_accountant_is_asked_seldom_and_finely_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[float] = []
    answer = accountant._opacus_epsilon

    def counted(rows: tuple[accountant.Row, ...], delta: float, error: float) -> float:
        errors.append(error)
        return answer(rows, delta, error)

    monkeypatch.setattr(accountant, "_opacus_epsilon", counted)
    steps: list[None] = []
    noise_multiplier_for(epsilon=0.7, delta=DELTA, sample_rate=0.11, steps=17, asked=lambda: steps.append(None))
    assert errors.count(COARSE) <= 7 and 1 <= errors.count(FINE) <= 4  # halving from 1 took 12 and 9
    assert len(steps) >= len(errors) - errors.count(FINE)  # who shows how far it is hears of every question


def test_the_estimate_is_near_and_the_bound_is_its_own() -> None:
    account = Account().add(noise_multiplier=5.0, sample_rate=0.125, steps=40)
    bound, about = account.epsilon(delta=DELTA), account.estimate(delta=DELTA)
    assert bound < 2.0 and abs(bound - about) < 3e-4
    above = Account().add(noise_multiplier=1.0, sample_rate=0.125, steps=40)
    assert above.estimate(delta=DELTA) == above.epsilon(delta=DELTA) > 2.0
    assert Account().estimate(delta=DELTA) == 0.0


def test_so_large_a_budget_takes_the_least_noise_there_is() -> None:
    assert noise_multiplier_for(epsilon=500.0, delta=DELTA, sample_rate=0.125, steps=2) == LEAST


def test_phases_are_scaled_by_the_least_that_holds() -> None:
    phases = [Spending(share=0.4, sample_rate=0.1, steps=10), Spending(share=0.6, sample_rate=0.2, steps=12)]
    sigmas = noise_multipliers_for(epsilon=6.0, delta=DELTA, phases=phases)

    def together(scale: float) -> float:
        account = Account()
        for sigma, phase in zip(sigmas, phases, strict=True):
            account = account.add(noise_multiplier=sigma * scale, sample_rate=phase.sample_rate, steps=phase.steps)
        return account.epsilon(delta=DELTA)

    assert together(1.0) <= 6.0 < together(0.998)


def test_phases_that_cost_more_together_than_each_alone_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No accountant should say so; what is promised does not rest on that."""
    class Grudging(Account):
        def add(self, *, noise_multiplier: float, sample_rate: float, steps: int) -> Account:
            rows = (*self.rows, accountant.Row(noise_multiplier, sample_rate, steps))
            return Grudging(rows)

        def epsilon(self, *, delta: float) -> float:
            return sum(1 / row.noise_multiplier for row in self.rows) * 1.01 ** (len(self.rows) - 1)

        estimate = epsilon

    monkeypatch.setattr(calibration, "Account", Grudging)
    phases = [Spending(share=0.5, sample_rate=0.1, steps=10), Spending(share=0.5, sample_rate=0.2, steps=12)]
    with pytest.raises(PrivacyError, match="the phases together cost more than epsilon"):
        noise_multipliers_for(epsilon=2.0, delta=DELTA, phases=phases)


@pytest.mark.parametrize("place", [1, 7, 41, 500, 999, 1000])
@pytest.mark.parametrize("guess", [1, 40, 999])
def test_a_search_ends_at_the_place_whatever_the_curve(place: int, guess: int) -> None:
    """A cliff, which no secant foresees: halving takes over."""
    asked: list[int] = []

    def cliff(number: int) -> float:
        asked.append(number)
        return 5.0 if number < place else 0.001

    assert _least(cliff, 1.0, low=0, high=1000, guess=guess) == place
    assert len(asked) <= 20 and len(set(asked)) == len(asked)
