"""The fusion model, its losses, its weights as arrays, and augmentation; needs torch."""

from shared_model.fusion.augmentation import augment
from shared_model.fusion.config import SIZES, FusionConfig
from shared_model.fusion.losses import patient_loss_B
from shared_model.fusion.model import FusionModel, FusionOutput, build_model
from shared_model.fusion.parameters import arrays_of, load_arrays, load_image_branch, load_public_weights

__all__ = [
    "SIZES", "FusionConfig", "FusionModel", "FusionOutput", "arrays_of", "augment", "build_model", "load_arrays",
    "load_image_branch", "load_public_weights", "patient_loss_B",
]  # fmt: skip
