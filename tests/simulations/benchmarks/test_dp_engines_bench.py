"""The bench compares like with like: three ways to the same step, rows that name their bounds."""

from __future__ import annotations

import itertools

import pytest
import torch

from simulations.benchmarks import dp_engines
from simulations.benchmarks.dp_engines import CASES, Case

CASE = Case(size="tiny", height=48, width=40, of_plain=0.1, of_hooks=0.1, memory=10.0)


def weights_after_a_step(way: str, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    models: list[torch.nn.Module] = []
    build = dp_engines.make_model
    monkeypatch.setattr(dp_engines, "make_model", lambda case: models.append(build(case)) or models[-1])
    dp_engines.make_step(CASE, way)()
    return torch.cat([p.detach().flatten() for p in models[0].parameters()])


def test_without_noise_private_steps_and_stock_hooks_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same model, same women, same clipping, same divisor: otherwise the ratio would compare two different things."""
    monkeypatch.setattr(dp_engines, "SIGMA", 0.0)
    monkeypatch.setattr(dp_engines, "CLIP", 0.05)
    start = torch.cat([p.detach().flatten() for p in dp_engines.make_model(CASE).parameters()])
    private, hooks = (weights_after_a_step(way, monkeypatch) - start for way in ("private", "hooks"))
    assert float(private.norm()) > 0
    assert float((private - hooks).norm() / private.norm()) < 1e-3  # float32 differences of weights near one


def test_without_clipping_all_three_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dp_engines, "SIGMA", 0.0)
    monkeypatch.setattr(dp_engines, "CLIP", 1e6)
    start = torch.cat([p.detach().flatten() for p in dp_engines.make_model(CASE).parameters()])
    moves = [weights_after_a_step(way, monkeypatch) - start for way in dp_engines.WAYS]
    for one, other in itertools.combinations(moves, 2):
        assert float((one - other).norm() / one.norm()) < 1e-3


def test_rows_name_what_they_are_compared_with() -> None:
    threads = torch.get_num_threads()
    rows = dp_engines.measure((CASE,), turns=1)
    assert [row.against for row in rows] == ["without privacy", "stock Opacus hooks", "stock Opacus hooks"]
    assert [row.unit for row in rows] == ["patients/s", "patients/s", "MB"]
    assert all(row.value > 0 and row.ratio is not None and row.ratio > 0 for row in rows)
    assert all(row.name.startswith("tiny 48 x 40, ") for row in rows)
    assert torch.get_num_threads() == threads


def test_the_promises_are_those_of_the_study() -> None:
    promised = {128: (0.5, 1.6, 0.4), 224: (0.75, 1.6, 0.3), 512: (0.75, 2.2, 0.2)}
    for case in CASES:
        if case.height in promised:
            assert (case.of_plain, case.of_hooks, case.memory) == promised[case.height]
    assert {case.height for case in CASES} > set(promised)
