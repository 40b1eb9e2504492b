"""What is wrong with a request for private training, found before anything is trained; called by `train_round`."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from client.privacy.randomness import Randomness
from shared_model.errors import ConfigError, PrivacyError
from shared_model.protocol import Protocol


def check_training(protocol: Protocol, model: nn.Module, randomness: Randomness) -> None:
    """Refuse what would make the training, or its privacy statement, false.

    Raises:
        ConfigError: a setting that is not possible for this kind of data.
        PrivacyError: with privacy on, oversampling, predictable randomness, or a layer that mixes patients.
    """
    if protocol.training.oversampling == "smote":
        raise ConfigError(
            "training.oversampling=smote cannot make a woman: SMOTE interpolates table rows, and a row between two "
            "women has no films", found="smote", expected="none or positives",
            remedy="use `positives`, which shows women with cancer more often, or loss.pos_weight",
        )  # fmt: skip
    if not protocol.private:
        return
    if protocol.training.oversampling != "none":
        raise PrivacyError(
            "oversampling with privacy on: a repeated woman is clipped once per copy, so that she moves the sum by "
            "more than C and the printed epsilon would be false", found=protocol.training.oversampling, expected="none",
            remedy="use the threshold and calibration to deal with rare cancers",
        )  # fmt: skip
    if not randomness.secret:
        raise PrivacyError(
            "seeded randomness with privacy on: whoever knows the seed can subtract the noise",
            found=type(randomness).__name__, expected="SecureRandomness", remedy="never seed private training",
        )  # fmt: skip
    faults = layer_faults(model)
    if faults:
        raise PrivacyError(
            "the model mixes patients or keeps their statistics", found=faults,
            expected="layers that treat each patient alone", remedy="replace BatchNorm by GroupNorm",
        )  # fmt: skip


def layer_faults(model: nn.Module) -> list[str]:
    """Layers that private training must not have, each as `name: reason`; empty for a model that may be trained."""
    faults = []
    for name, module in model.named_modules():
        buffers = [n for n, _ in module.named_buffers(recurse=False)]
        parameters = any(p.requires_grad for p in module.parameters(recurse=False))
        if isinstance(module, _BatchNorm):
            faults.append(f"{name}: {type(module).__name__} normalises one patient by the others")
        elif getattr(module, "track_running_stats", False):
            faults.append(f"{name}: {type(module).__name__} keeps running statistics of the patients, without noise")
        elif buffers and (parameters or module.training):
            faults.append(f"{name}: buffers {buffers} would be updated without noise")
    return faults
