"""The fusion model: four films and a clinical row of one woman -> one logit; used by training, evaluation, explanation.

Letters: B patients, V = 4 views, C = 2 channels, H W pixels, F clinical features, D embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shared_model.cohort.batch import VIEWS, OtherInput, PatientBatch
from shared_model.errors import ConfigError
from shared_model.fusion.attention import ClinicalEncoder, ViewBag
from shared_model.fusion.config import FusionConfig, Objective, Scope
from shared_model.fusion.encoder import ViewEncoder
from shared_model.fusion.joints import JOINTS, Evidence
from shared_model.fusion.modalities import OtherBranch

IMAGE_REPRESENTATION = ("encoder", "view_embedding", "bag")
IMAGE_BRANCH = (*IMAGE_REPRESENTATION, "image_head")
STARTS_AT_ZERO = ("other_head", "clinical_head", "clinical_direct", "image_direct", "gate_final", "head.final")
CLINICAL_BRANCH = ("clinical", "clinical_head", "clinical_direct")


class FusionOutput(NamedTuple):
    """What the model says about B patients.

    logit_B: log odds of cancer from all that is there; image_logit_B, clinical_logit_B: from one modality alone (the
        prior where it is missing). gate_B2: how much image and table counted, present entries sum to 1, exactly 0 for a
        missing modality. view_weights_BV: attention over the views, exactly 0 for a missing one. other_gate_BK: the
        gate of the K further modalities of `config.others`, in their order; K is 0 in a study of this release.
    """

    logit_B: Tensor
    image_logit_B: Tensor
    clinical_logit_B: Tensor
    gate_B2: Tensor
    view_weights_BV: Tensor
    other_gate_BK: Tensor


class FusionModel(nn.Module):
    """See the module. Every parameter belongs to a layer with exact per-sample gradients.

    Args:
        config: shape of the model.
        prior_logit: public log odds of a positive; a constant, not a parameter, so that weights trained at one
            prevalence serve at another by exchanging it.

    Attributes:
        fold_views: True (default) encodes all present films of all patients as one batch and skips missing films: for
            evaluation, explanation, training without privacy, and per-patient passes. False encodes view after view,
            [B, ...] each: what hooks need to give *per-patient* gradients. Both give the same logits.
        encoded: True takes descriptors of the films (:meth:`encode`) in place of their pixels, [B, V, D, 1, 1].
    """

    def __init__(self, config: FusionConfig, *, prior_logit: float) -> None:
        super().__init__()
        spec = config.spec
        self.config = config
        self.prior_logit = prior_logit
        self.fold_views = True
        self.encoded = False
        self.encoder = ViewEncoder(spec)
        self.view_embedding = nn.Embedding(len(VIEWS), spec.embedding)
        self.bag = ViewBag(spec.embedding, spec.attention)
        self.image_head = nn.Linear(spec.embedding, 1)
        self.image_direct = nn.Linear(1, 1)
        self.clinical = ClinicalEncoder(config.n_clinical, spec.hidden, spec.embedding)
        self.clinical_head = nn.Linear(spec.embedding, 1)
        self.clinical_direct = nn.Linear(config.n_clinical, 1)
        self.joint = JOINTS[config.fusion](config)
        self.others = nn.ModuleDict({name: OtherBranch(name, config) for name in config.others})

    def forward(self, batch: PatientBatch) -> FusionOutput:
        """Score the patients of a batch."""
        return self.forward_tensors(
            batch.pixels_BVCHW, batch.view_mask_BV, batch.clinical_BF, batch.modality_mask_B2, others=batch.others
        )

    def forward_tensors(
        self,
        pixels_BVCHW: Tensor,
        view_mask_BV: Tensor,
        clinical_BF: Tensor,
        modality_mask_B2: Tensor,
        view_index_BV: Tensor | None = None,
        others: Mapping[str, OtherInput] | None = None,
    ) -> FusionOutput:
        """The same from bare tensors, for gradient and explanation libraries.

        view_index_BV: int64 indices into `VIEWS` of each film; needed when a patient comes with fewer than four slots.

        Raises:
            ConfigError: fewer or more than four view slots without `view_index_BV`.
        """
        present_B2 = modality_mask_B2 > 0
        view_mask_BV = view_mask_BV & present_B2[:, :1]
        present_B2 = torch.stack([view_mask_BV.any(dim=1), present_B2[:, 1]], dim=1)
        row_BF = clinical_BF.masked_fill(~present_B2[:, 1:], 0.0)
        views_BVD = self.describe_views(pixels_BVCHW, view_mask_BV, view_index_BV)
        image_BD, weights_BV = self.bag(views_BVD, view_mask_BV)
        return self.fuse(image_BD, row_BF, present_B2, views_BVD, view_mask_BV, weights_BV, others)

    def describe_views(self, pixels_BVCHW: Tensor, view_mask_BV: Tensor, view_index_BV: Tensor | None = None) -> Tensor:
        """Descriptors of the films [B, V, D], view embedding added; meaningless where a view is missing."""
        B, V = view_mask_BV.shape
        if view_index_BV is None:
            if len(VIEWS) != V:
                raise ConfigError(
                    "films without their view positions", found=f"{V} slots", expected=f"{len(VIEWS)} slots",
                    remedy="pass view_index_BV",
                )  # fmt: skip
            # Expanded to [B, V]: an index shared by the batch would have a per-sample gradient of batch size 1.
            view_index_BV = torch.arange(V, device=view_mask_BV.device).expand(B, V)
        if self.encoded:
            encoded_BVD = pixels_BVCHW.flatten(2)
        elif self.fold_views:
            encoded_BVD = self.encode(pixels_BVCHW, view_mask_BV)
        else:
            encoded_BVD = torch.stack([self.encoder(pixels_BVCHW[:, v]) for v in range(V)], dim=1)
        return encoded_BVD + self.view_embedding(view_index_BV)  # type: ignore[no-any-return]

    def encode(self, pixels_BVCHW: Tensor, view_mask_BV: Tensor) -> Tensor:
        """Descriptors of the films [B, V, D], zeros for a missing one: all that the rest needs to know of a film."""
        B, V = view_mask_BV.shape
        width = self.config.spec.embedding
        films = view_mask_BV.flatten().nonzero().squeeze(1)
        if len(films) == 0:
            return pixels_BVCHW.new_zeros(B, V, width)
        pixels_NCHW = pixels_BVCHW.flatten(0, 1)
        if len(films) == B * V:
            return self.encoder(pixels_NCHW).view(B, V, width)  # type: ignore[no-any-return]
        encoded_ND = self.encoder(pixels_NCHW.index_select(0, films))
        return encoded_ND.new_zeros(B * V, width).index_copy(0, films, encoded_ND).view(B, V, width)  # type: ignore[no-any-return]

    def fuse(
        self, image_BD: Tensor, row_BF: Tensor, present_B2: Tensor, views_BVD: Tensor, view_mask_BV: Tensor,
        weights_BV: Tensor, others: Mapping[str, OtherInput] | None = None,
    ) -> FusionOutput:  # fmt: skip
        """From image token and clinical row on; what table attributions evaluate with the image token cached."""
        present = present_B2.to(image_BD.dtype)
        clinical_BD = self.clinical(row_BF) * present[:, 1:]
        # Straight ways beside the branches: under privacy the few numbers of a logistic regression on the table and the
        # image's score are learnt where thousands drown in noise. Not on the image token: it is some ten times as long
        # as scores are spread, and under one clipping bound that leaves the table too little (0.01 AUC, seed 0).
        image_B1 = self.image_head(image_BD)
        # A missing modality says nothing: not even the bias of its head.
        image_B = (image_B1 + self.image_direct(image_B1)).squeeze(1) * present[:, 0]
        clinical_B = (self.clinical_head(clinical_BD) + self.clinical_direct(row_BF)).squeeze(1) * present[:, 1]
        evidence = Evidence(
            image_BD * present[:, :1], clinical_BD, image_B, clinical_B, present_B2, views_BVD, view_mask_BV, row_BF,
            tuple(branch(len(row_BF), (others or {}).get(name)) for name, branch in self.others.items()),
        )  # fmt: skip
        joined_B, gate_BM = self.joint(evidence)
        prior = self.prior_logit
        return FusionOutput(prior + joined_B, prior + image_B, prior + clinical_B, gate_BM[:, :2], weights_BV,
                            gate_BM[:, 2:])  # fmt: skip

    def encoder_parameters(self) -> tuple[str, ...]:
        """Names of the image representation's parameters: encoder, view embedding, bag (the low learning rate)."""
        return self._names(IMAGE_REPRESENTATION)

    def image_parameters(self) -> tuple[str, ...]:
        """Names of all that an image-only prediction needs: the representation and the image head."""
        return self._names(IMAGE_BRANCH)

    def fusion_parameters(self) -> tuple[str, ...]:
        """Names of all the rest: heads, clinical encoder, joint."""
        low = set(self.encoder_parameters())
        return tuple(name for name, _ in self.named_parameters() if name not in low)

    def clinical_parameters(self) -> tuple[str, ...]:
        """Names of all that a prediction from the table alone needs."""
        return self._names(CLINICAL_BRANCH)

    def trainable_parameters(self, objective: Objective, scope: Scope = "all") -> tuple[str, ...]:
        """Names that a phase trains: one branch alone for `image` and `clinical`, everything for `fusion`.

        scope: `features` leaves the view encoder as it is; `adapters` trains its pooling and, of its convolutions, the
            scales and shifts of the norms after them only; `linear` trains the straight ways alone: the weights of the
            table, slope and offset of the image's score. The latter two rest in all other scopes, where they would say
            again what the image's head says.
        """
        if scope == "linear":
            modules = {"image": ("image_direct",), "clinical": ("clinical_direct",)}
            return self._names(modules.get(objective, ("image_direct", "clinical_direct")))
        if objective == "clinical":
            return self.clinical_parameters()
        names = self.image_parameters() if objective == "image" else tuple(n for n, _ in self.named_parameters())
        fixed = {name for name in self._names(("encoder",)) if scope == "features" or not _adapts(name, scope)}
        fixed |= set(self._names(("image_direct",)))
        return tuple(name for name in names if name not in fixed)

    def _names(self, modules: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name for name, _ in self.named_parameters() if name.split(".", 1)[0] in modules)


def _adapts(name: str, scope: Scope) -> bool:
    """Whether an encoder's parameter learns in a scope: the pooling and norms are named so in the encoder."""
    return scope == "all" or "norm" in name or name.startswith("encoder.pooling.")


def build_model(config: FusionConfig, *, seed: int, prevalence: float) -> FusionModel:
    """A freshly initialised model on the CPU: the same bits for the same seed, global generators untouched.

    Args:
        config: shape.
        seed: 0 <= seed < 2**32.
        prevalence: public share of positives in (0, 1); sets the prior log odds.

    The clinical heads, the gate and the joint's head end in zeros: at first the fused logit is the image logit.
    """
    if not 0 < prevalence < 1:
        raise ConfigError("prevalence must be a share", found=prevalence, expected="in (0, 1)")
    with torch.device("meta"):  # no memory and no random numbers until ours
        model = FusionModel(config, prior_logit=math.log(prevalence / (1 - prevalence)))
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        _initialise(module, generator, zero=name.endswith(STARTS_AT_ZERO))
    return model


@torch.no_grad()
def _initialise(module: nn.Module, generator: torch.Generator, *, zero: bool) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
    elif isinstance(module, nn.Linear):
        spread = 0.0 if zero else 1.0 / math.sqrt(module.in_features)
        nn.init.normal_(module.weight, std=spread, generator=generator)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02, generator=generator)
    elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
