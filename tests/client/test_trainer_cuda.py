"""The trainer on a GPU: two sites share it, train with privacy and are evaluated. Needs CUDA: `pytest -m cuda`."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from client.trainer.service import TrainerService
from shared_model.messages import Frame, decode, encode

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]


@pytest.mark.parametrize(("private", "engine"), [(False, "batch"), (True, "loop"), (True, "opacus")])
def test_sites_share_a_gpu(small_study: Callable[..., Any], private: bool, engine: str) -> None:
    study = small_study(private=private, training__engine=engine)
    lock = threading.Lock()
    services = [
        TrainerService(study.config(s).model_copy(update={"device": "auto"}), compute=lock)
        for s in ("site-01", "site-02")
    ]
    replies = []
    for service in services:
        assert service.device == "cuda"
        data = service.exchange(encode(Frame(study.train(), study.arrays)), wanted=lambda: True)
        replies.append(decode(data))
        assert service.exchange(encode(Frame(study.train(), study.arrays)), wanted=lambda: True) == data
        service.close()
    for reply in replies:
        assert reply.message.outcome == "trained"  # type: ignore[union-attr]
        assert all(np.isfinite(a).all() for a in reply.arrays.values())
    names = list(study.arrays)
    assert any(not np.array_equal(replies[0].arrays[n], replies[1].arrays[n]) for n in names)


def test_the_gpu_scores_as_the_cpu_does(small_study: Callable[..., Any], tmp_path: Any) -> None:
    study = small_study()
    reports = []
    for device in ("cpu", "cuda"):
        config = study.config("evaluator").model_copy(update={"device": device, "state": tmp_path / device})
        service = TrainerService(config, compute=threading.Lock())
        frame = Frame(study.evaluate("selection"), study.arrays)
        message = decode(service.exchange(encode(frame), wanted=lambda: True)).message
        reports.append(json.loads(message.report))  # type: ignore[union-attr]
        service.close()
    assert reports[0]["auc"]["fused"] == pytest.approx(reports[1]["auc"]["fused"], abs=0.02)
