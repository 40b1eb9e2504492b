"""DICOM film -> two-channel view tensor: decode, photometric, orient, mask, resample, equalise. Needs no torch."""

from shared_model.imaging.admission import VIEWS, Film
from shared_model.imaging.channels import Channels, film_to_channels
from shared_model.imaging.config import PIPELINE_VERSION, PipelineConfig
from shared_model.imaging.geometry import Box, Placement
from shared_model.imaging.policy import DIGITISED_FILMS, AdmissionPolicy
from shared_model.imaging.pool import FilmPool, prepare_views
from shared_model.imaging.reasons import REASONS, SECTIONS, FilmRefusedError
from shared_model.imaging.view import Picture, View, prepare_view, read_header, read_picture

__all__ = [
    "DIGITISED_FILMS", "PIPELINE_VERSION", "REASONS", "SECTIONS", "VIEWS", "AdmissionPolicy", "Box", "Channels", "Film",
    "FilmPool", "FilmRefusedError", "Picture", "PipelineConfig", "Placement", "View", "film_to_channels",
    "prepare_view", "prepare_views", "read_header", "read_picture",
]  # fmt: skip
