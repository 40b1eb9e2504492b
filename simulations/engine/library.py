"""Trainers as a library: the same services as in trainer processes, called without a socket, in this process.

Used where one process runs whole studies one after another (`simulations/baselines`) and inside Ray's actors
(`simulations/engine/flower`), which place the process themselves. Imports torch: never from the launcher.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from flwr.app import Context, Message
from numpy.typing import NDArray

from client.app import SITE_KEY, content_of, frame_of
from client.trainer.config import SiteConfig
from client.trainer.evaluate import score_patients
from client.trainer.models import WarmModels
from client.trainer.service import TrainerService
from client.training.features import FeatureCache
from shared_model.errors import ConfigError, MammoFedError
from shared_model.evaluation import Scores
from shared_model.messages import Arrays, ErrorReply, Frame, decode, encode, weights_sha256
from shared_model.protocol import Protocol
from simulations.engine.pool import in_order


def answer(service: TrainerService, message: Message) -> Message:
    """What the courier and the trainer do together, in one process: a Flower message in, its reply out."""
    try:
        reply = decode(service.exchange(encode(frame_of(message.content)), wanted=_always))
    except MammoFedError as error:
        reply = Frame(ErrorReply(code=error.exit_code, reason=str(error)[:500]))
    return Message(content_of(reply), reply_to=message)


def _always() -> bool:
    """A caller in the same process waits for its answer."""
    return True


@dataclass(frozen=True)
class Lane:
    """All sites of a library share one lane: they compute in turn. socket: none, but the local grid names one."""

    index: int = 0
    socket: Path = Path("/nowhere")


class TrainerLibrary:
    """The parties of a study in this process; stands where :class:`simulations.engine.pool.TrainerPool` stands, and is
    the ClientApp of :class:`simulations.engine.local.LocalGrid` at the same time.

    Args:
        site_files: each party's `site.json`.
        features: cohort folder -> descriptors that outlive this library.

    Raises:
        ConfigError: no site, or one named twice.
        MammoFedError: a site cannot be opened.
    """

    def __init__(
        self, site_files: Sequence[Path], *, features: Callable[[Path], FeatureCache] | None = None
    ) -> None:
        configs = [SiteConfig.read(path) for path in site_files]
        names = [config.site for config in configs]
        if not names or len(set(names)) != len(names):
            raise ConfigError("a study needs each site exactly once", found=names)
        lock, models = threading.Lock(), WarmModels()
        self._services = {
            config.site: TrainerService(
                config, compute=lock, models=models, features=features(config.cohort) if features else None
            )
            for config in configs
        }
        self.trainers = (Lane(),)
        self.nodes: Mapping[int, str] = dict(enumerate(in_order(configs), start=1))

    def trainer(self, site: str) -> Lane:
        """The one lane."""
        return self.trainers[0]

    def ensure(self, lane: Lane) -> None:
        """Nothing to do: a library lives as long as its process."""

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer one Flower message for the site that `context` names."""
        return answer(self._services[str(context.node_config[SITE_KEY])], message)

    def scores(self, party: str, protocol: Protocol, arrays: Arrays, split: str) -> Scores:
        """Scores of a party's own women with given weights. For simulations, which own all parties: in a federation
        they stay where they are."""
        site = self._services[party].site
        return score_patients(site, site.model(protocol, arrays, weights_sha256(arrays)), site.indices(split))

    def scores_on(
        self, party: str, protocol: Protocol, arrays: Arrays, features: FeatureCache, indices: NDArray[np.int64]
    ) -> Scores:
        """The same for women of a cohort that the party does not hold."""
        site = self._services[party].site
        model = site.model(protocol, arrays, weights_sha256(arrays))
        return score_patients(site, model, indices, features=features)

    def close(self) -> None:
        """Let go of the sites' state."""
        for service in self._services.values():
            service.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
