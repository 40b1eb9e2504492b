"""A process holds one model of a shape, however many sites it hosts, and no site sees what another left in it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from client.trainer import models as models_module
from client.trainer.models import KEPT_MODELS, WarmModels
from client.trainer.service import TrainerService
from shared_model.messages import Frame, decode, encode
from shared_model.protocol import Protocol

Study = Any
Make = Callable[..., Study]
CPU = torch.device("cpu")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every model that is built, in order."""
    made: list[Any] = []
    build = models_module.build_model

    def counted(*arguments: Any, **settings: Any) -> Any:
        made.append(build(*arguments, **settings))
        return made[-1]

    monkeypatch.setattr(models_module, "build_model", counted)
    return made


def train(service: TrainerService, study: Study) -> dict[str, np.ndarray[Any, Any]]:
    reply = decode(service.exchange(encode(Frame(study.train(), study.arrays)), wanted=lambda: True))
    return dict(reply.arrays)


def test_many_sites_of_a_process_share_one_model(small_study: Make, built: list[Any]) -> None:
    study = small_study(sites=6, patients=8, held_out=20)
    lock, models = threading.Lock(), WarmModels()
    services = [TrainerService(study.config(party), compute=lock, models=models) for party in study.files]
    for service in services:
        service.warm()
    assert len(services) == 7
    assert len(built) == len(models) == 1
    together = [train(service, study) for service in services[:3]]
    assert len(built) == 1
    for service in services:
        service.close()

    for party, shared in zip(study.files, together, strict=False):  # as alone in a process, to the bit
        home = study.config(party)
        alone = TrainerService(home.model_copy(update={"state": home.state / "alone"}), compute=threading.Lock())
        own = train(alone, study)
        assert set(own) == set(shared)
        assert all(np.array_equal(own[name], shared[name]) for name in own)
        alone.close()


def test_protocols_of_one_shape_share_a_model_and_old_shapes_go(small_study: Make, built: list[Any]) -> None:
    study, models = small_study(sites=1, patients=8, held_out=20), WarmModels()

    def take(**model: str) -> Any:
        values = study.protocol.model_dump(mode="json")
        values["model"] |= model
        values["seed"] += len(built)
        return models.take(Protocol.create(values), CPU)[0]

    assert take() is take()
    others = [take(fusion=fusion) for fusion in ("early", "mid", "late")]
    assert len({id(model) for model in others}) == 3
    assert len(models) == KEPT_MODELS
    assert take(fusion="late") is others[-1]
