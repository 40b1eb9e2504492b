"""Each phase has its share of epsilon, and all of them together keep the budget."""

from __future__ import annotations

import pytest

from client.privacy.accountant import Account
from client.privacy.calibration import Spending, noise_multiplier_for, noise_multipliers_for
from shared_model.errors import PrivacyError

DELTA = 1e-5


def spent(sigmas: tuple[float, ...], phases: list[Spending]) -> float:
    account = Account()
    for sigma, phase in zip(sigmas, phases, strict=True):
        account = account.add(noise_multiplier=sigma, sample_rate=phase.sample_rate, steps=phase.steps)
    return account.epsilon(delta=DELTA)


def test_one_phase_is_calibrated_as_before() -> None:
    phase = Spending(share=1.0, sample_rate=0.125, steps=64)
    assert noise_multipliers_for(epsilon=4.0, delta=DELTA, phases=[phase]) == (
        noise_multiplier_for(epsilon=4.0, delta=DELTA, sample_rate=0.125, steps=64),
    )


def test_phases_together_use_the_budget_and_keep_it() -> None:
    phases = [Spending(share=0.25, sample_rate=0.125, steps=32), Spending(share=0.75, sample_rate=0.25, steps=48)]
    sigmas = noise_multipliers_for(epsilon=6.0, delta=DELTA, phases=phases)
    assert 0.97 * 6.0 < spent(sigmas, phases) <= 6.0
    alone = [spent((sigma,), [phase]) for sigma, phase in zip(sigmas, phases, strict=True)]
    assert alone[0] < alone[1] and sum(alone) > 6.0  # they compose to less than the sum: that is given back


@pytest.mark.parametrize("shares", [(0.5, 0.6), (1.0, 0.0), ()])
def test_shares_that_are_none_are_refused(shares: tuple[float, ...]) -> None:
    phases = [Spending(share=share, sample_rate=0.1, steps=10) for share in shares]
    with pytest.raises(PrivacyError, match="shares of epsilon"):
        noise_multipliers_for(epsilon=6.0, delta=DELTA, phases=phases)
