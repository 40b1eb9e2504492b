"""A site's training of one round as a user of PyTorch and Opacus writes it; what both peers run, and ours does not.

Same model, cohorts, split, loss, optimiser, steps, sampling rate, sigma and clip as the MammoFed study whose run
directory it is given. Privacy is stock Opacus: an engine a round as in Flower's and Opacus' own examples, hooks,
Poisson sampling, and (unlike ours) noise from torch's generator, no ledger and no epsilon over rounds.
"""

from __future__ import annotations

import functools
import json
import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from client.trainer.config import SiteConfig
from shared_model.cohort import Cohort, split_indices
from shared_model.cohort.batch import PatientBatch
from shared_model.fusion import FusionConfig, FusionModel, build_model, patient_loss_B
from shared_model.protocol import Protocol

MARKS = "marks.jsonl"
LAST = "last-{site}.safetensors"  # a site's reply of the last round, for the check that the study was one
Woman = tuple[Tensor, ...]


class Women(Dataset[Woman]):
    """Training patients of a site, each as the five tensors of a `PatientBatch`, straight from the mapped cohort."""

    def __init__(self, site_file: Path) -> None:
        site = SiteConfig.read(site_file)
        self._cohort = Cohort.open(site.cohort)
        self._rows = split_indices(self._cohort, salt=site.salt, fractions=site.fractions)["train"]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> Woman:
        one = self._cohort.batch([self._rows[position]])
        return (one.pixels_BVCHW[0], one.view_mask_BV[0], one.clinical_BF[0], one.clinical_mask_B[0], one.labels_B[0])


@dataclass(frozen=True)
class Study:
    """What the run directory of our study says. sites: of each site in the order of names."""

    protocol: Protocol
    sites: tuple[Women, ...]
    initial: Mapping[str, Tensor]

    def model(self, weights: Mapping[str, Any]) -> FusionModel:
        """A model with these weights (tensors or numpy arrays)."""
        terms = self.protocol
        config = FusionConfig(
            size=terms.model.size, fusion=terms.model.fusion, n_clinical=terms.contract.n_features,
            height=terms.pipeline.height, width=terms.pipeline.width,
        )  # fmt: skip
        model = build_model(config, seed=terms.seed, prevalence=terms.loss.prevalence)
        model.load_state_dict({name: torch.as_tensor(value) for name, value in weights.items()})
        return model.train()


@functools.cache
def study(run_dir: Path) -> Study:
    """Opened once in each process: a good user keeps the data at hand from round to round."""
    protocol = Protocol.read(run_dir / "protocol.json")
    names = sorted(site.name for site in protocol.federation.sites)
    sites = tuple(Women(run_dir / "sites" / name / "site.json") for name in names)
    return Study(protocol, sites, load_file(run_dir / "initial.safetensors"))


def train(
    run_dir: Path, *, site: int, round_number: int, weights: Mapping[str, Any], out: Path
) -> tuple[dict[str, Tensor], float, int]:
    """One round at the `site`-th site, marked in `out`: new weights, mean loss of the batches, number of patients."""
    mark(out, "began", round_number, site=site)
    here = study(run_dir)
    protocol, women = here.protocol, here.sites[site]
    model = here.model(weights)
    optimizer = _optimizer(model, protocol, round_number)
    loader = DataLoader(women, batch_size=math.ceil(protocol.training.sample_rate * len(women)), shuffle=True)
    step = _private if protocol.private else _plain
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Opacus on its generator, and at each step on films that need no gradient
        losses = step(model, optimizer, loader, protocol)
    replied, loss = dict(model.state_dict()), float(np.mean(losses))
    if round_number == protocol.rounds:
        save_file({name: value.contiguous() for name, value in replied.items()}, out / LAST.format(site=site))
    mark(out, "ended", round_number, site=site, patients=len(women), loss=loss)
    return replied, loss, len(women)


def _optimizer(model: FusionModel, protocol: Protocol, round_number: int) -> torch.optim.Optimizer:
    terms, rate = protocol.training, protocol.learning_rate(round_number)
    if terms.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), rate, momentum=terms.momentum, weight_decay=terms.weight_decay)
    return torch.optim.AdamW(model.parameters(), rate, betas=(terms.momentum, 0.999), weight_decay=terms.weight_decay)


def _plain(
    model: FusionModel, optimizer: torch.optim.Optimizer, loader: DataLoader[Woman], protocol: Protocol
) -> list[float]:
    losses = []
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # what torch advises for convolutions
    for tensors in loader:
        optimizer.zero_grad()
        loss = _loss(model, tensors, protocol)
        torch.autograd.backward(loss)
        if protocol.training.gradient_clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), protocol.training.gradient_clip)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def _private(
    model: FusionModel, optimizer: torch.optim.Optimizer, loader: DataLoader[Woman], protocol: Protocol
) -> list[float]:
    from opacus import PrivacyEngine

    model.fold_views = False  # Opacus' hooks take a row of a layer's input for a patient: views go one after another
    hooked, private_optimizer, private_loader = PrivacyEngine().make_private(
        module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=protocol.privacy.noise_multiplier,
        max_grad_norm=protocol.privacy.clip, poisson_sampling=True,
    )  # fmt: skip
    losses = []
    for tensors in private_loader:
        private_optimizer.zero_grad()
        loss = _loss(hooked, tensors, protocol)
        torch.autograd.backward(loss)
        private_optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def _loss(model: Any, tensors: list[Tensor], protocol: Protocol) -> Tensor:
    """Mean loss of the patients of a batch, all branches trained."""
    batch = PatientBatch(*tensors)  # type: ignore[arg-type]  # five tensors
    return patient_loss_B(model(batch), batch, terms=protocol.loss, objective="fusion").mean()


def mark(out: Path, what: str, round_number: int, **more: float) -> None:
    """Add a line with the time to `marks.jsonl`; short enough that lines of several processes do not mix."""
    line = json.dumps({"what": what, "round": round_number, "time": time.time(), **more})
    with (out / MARKS).open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")


def averaged(out: Path, patients: Mapping[int, int]) -> dict[str, Tensor]:
    """FedAvg of the replies that the sites left in `out` after the last round."""
    total = sum(patients.values())
    replies = {site: load_file(out / LAST.format(site=site)) for site in patients}
    return {
        name: torch.stack([replies[site][name] * (count / total) for site, count in patients.items()]).sum(0)
        for name in next(iter(replies.values()))
    }


def auc(run_dir: Path, weights: Mapping[str, Any]) -> float:
    """AUC of the fused score on all held-out women of the study; not a number where a score is none."""
    from shared_model.evaluation.auc import roc_auc  # scipy, which training does not need

    evaluator = SiteConfig.read(run_dir / "sites" / "evaluator" / "site.json")
    cohort, model = Cohort.open(evaluator.cohort), study(run_dir).model(weights).eval()
    scores: list[float] = []
    with torch.no_grad():
        for rows in np.array_split(np.arange(len(cohort)), math.ceil(len(cohort) / 32)):
            scores += model(cohort.batch(rows)).logit_B.tolist()
    found = roc_auc(cohort.labels, scores) if np.isfinite(scores).all() else None
    return math.nan if found is None else found
