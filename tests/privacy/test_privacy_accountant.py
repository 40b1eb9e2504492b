"""The accountant: right against an independent one, and the same figure however many processes shared the work."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from client.privacy.accountant import Account, Row
from client.privacy.calibration import noise_multiplier_for
from shared_model.errors import PrivacyError

# sigma, q, steps, delta: rows as studies have them, and the single release of a histogram (q = 1).
CASES = [(1.1, 0.0625, 80, 1e-5), (1.0, 0.0625, 400, 1e-5), (0.8, 0.125, 160, 1e-5), (2.0, 0.25, 200, 1e-6),
         (1.5, 0.02, 1000, 1e-5), (5.0, 1.0, 1, 1e-5), (1.0, 0.1, 1, 1e-4)]  # fmt: skip


def pld_epsilon(rows: list[tuple[float, float, int]], delta: float) -> float:
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-3)
    for sigma, rate, steps in rows:
        event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma))
        accountant.compose(event, steps)
    return float(accountant.get_epsilon(delta))


def account(*rows: tuple[float, float, int]) -> Account:
    result = Account()
    for sigma, rate, steps in rows:
        result = result.add(noise_multiplier=sigma, sample_rate=rate, steps=steps)
    return result


@pytest.mark.parametrize(("sigma", "rate", "steps", "delta"), CASES)
def test_prv_agrees_with_pld_within_one_percent(sigma: float, rate: float, steps: int, delta: float) -> None:
    reference = pld_epsilon([(sigma, rate, steps)], delta)
    epsilon = account((sigma, rate, steps)).epsilon(delta=delta)
    assert epsilon == pytest.approx(reference, rel=0.01)
    assert epsilon > 0.998 * reference  # an upper bound up to PLD's own discretisation


def test_prv_agrees_with_pld_for_several_mechanisms() -> None:
    rows = [(1.0, 0.0625, 100), (1.5, 0.1, 60), (4.0, 1.0, 1)]
    assert account(*rows).epsilon(delta=1e-5) == pytest.approx(pld_epsilon(rows, 1e-5), rel=0.01)


def test_nothing_spent_is_zero() -> None:
    assert Account().epsilon(delta=1e-5) == 0.0
    assert account((1.0, 0.1, 0)).epsilon(delta=1e-5) == 0.0


def test_more_steps_more_sampling_and_less_noise_cost_more() -> None:
    base = account((1.0, 0.1, 50)).epsilon(delta=1e-5)
    assert account((1.0, 0.1, 60)).epsilon(delta=1e-5) > base
    assert account((1.0, 0.12, 50)).epsilon(delta=1e-5) > base
    assert account((0.9, 0.1, 50)).epsilon(delta=1e-5) > base
    assert account((1.0, 0.1, 50)).epsilon(delta=1e-6) > base


def test_equal_mechanisms_share_a_row_in_any_order() -> None:
    a, b = (1.0, 0.1, 5), (2.0, 0.1, 3)
    assert account(a, b, a).as_lists() == account(a, a, b).as_lists() == [[1.0, 0.1, 10], [2.0, 0.1, 3]]
    assert account(a).merge(account(b)) == account(b, a)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0.3, 10), st.floats(0.001, 1.0), st.integers(0, 10_000)), max_size=6))
def test_plain_numbers_survive_json(rows: list[tuple[float, float, int]]) -> None:
    before = account(*rows)
    after = Account.from_lists(json.loads(json.dumps(before.as_lists())))
    assert after == before and after.steps == sum(steps for _, _, steps in rows)


@pytest.mark.parametrize("bad", [
    [1.0, 0.1], [1.0, 0.1, 5, 6], ["1", 0.1, 5], [0.0, 0.1, 5], [-1.0, 0.1, 5], [1.0, 0.0, 5], [1.0, 1.5, 5],
    [1.0, 0.1, -5], [1.0, 0.1, 2.5], [float("nan"), 0.1, 5], [float("inf"), 0.1, 5], [1.0, 0.1, True],
])  # fmt: skip
def test_a_damaged_history_is_refused(bad: list[object]) -> None:
    with pytest.raises((PrivacyError, ValueError)):
        Account.from_lists([bad])  # type: ignore[list-item]


def test_rows_cannot_be_made_wrong_by_hand() -> None:
    with pytest.raises(PrivacyError):
        Account((Row(0.0, 0.1, 5),))
    with pytest.raises(PrivacyError):
        Account().epsilon(delta=0.0)


ONE_ROUND = """
import json, sys
from pathlib import Path
from client.privacy.accountant import Account
from client.privacy.ledger import Ledger, LedgerEntry
ledger = Ledger(Path(sys.argv[1]))
for number in json.loads(sys.argv[2]):
    entry = LedgerEntry(group="train", study="s", protocol_sha256="0" * 64, round=number, attempt=1,
                        noise_multiplier=1.1, sample_rate=0.0625, steps=16)
    ledger.settle(ledger.reserve(entry, budget=8.0, delta=1e-5))
print(repr(ledger.spent("train", delta=1e-5)), json.dumps(ledger.account("train").as_lists()))
"""


@pytest.mark.slow
def test_five_fresh_processes_equal_one(tmp_path: Path) -> None:
    """A process that forgot the ledger would report the first round's epsilon for ever."""

    def run(rounds: list[int]) -> tuple[float, list[list[float]]]:
        done = subprocess.run(
            [sys.executable, "-c", ONE_ROUND, str(tmp_path / "ledger.json"), json.dumps(rounds)],
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        epsilon, rows = done.stdout.split(" ", 1)
        return float(epsilon), json.loads(rows)

    several = [run([number]) for number in range(1, 6)]
    epsilons = [epsilon for epsilon, _ in several]
    assert epsilons == sorted(epsilons) and epsilons[0] < 0.6 * epsilons[-1]
    one = Account().add(noise_multiplier=1.1, sample_rate=0.0625, steps=80)
    assert several[-1] == (one.epsilon(delta=1e-5), one.as_lists())


@pytest.mark.parametrize(("epsilon", "rate", "steps"), [
    (8.0, 0.0625, 200), (1.0, 0.125, 60), (4.0, 1.0, 1), (30.0, 0.125, 48), (100.0, 0.125, 48),
])  # fmt: skip
def test_calibrated_noise_keeps_the_budget_and_wastes_little(epsilon: float, rate: float, steps: int) -> None:
    sigma = noise_multiplier_for(epsilon=epsilon, delta=1e-5, sample_rate=rate, steps=steps)
    assert sigma == round(sigma, 4)
    spent = account((sigma, rate, steps)).epsilon(delta=1e-5)
    assert 0.99 * epsilon < spent <= epsilon
    assert account((sigma * 0.99, rate, steps)).epsilon(delta=1e-5) > spent


def test_an_impossible_budget_is_refused() -> None:
    with pytest.raises(PrivacyError, match="too small"):
        noise_multiplier_for(epsilon=1e-4, delta=1e-5, sample_rate=1.0, steps=100)
    with pytest.raises(PrivacyError, match="above 0"):
        noise_multiplier_for(epsilon=0.0, delta=1e-5, sample_rate=1.0, steps=100)
