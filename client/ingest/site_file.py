"""site.yaml: one file that says where a hospital's films and facts are and what goes into its cohort; read by the CLI.

Relative paths are relative to the file. Nothing has a silent default that bears on privacy: key, threshold and policies
are written out, and `mammofed site example` writes a file with all of them and a word on each.
"""

from __future__ import annotations

import os
import stat
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from client.ingest.join_policy import JoinPolicy
from client.ingest.outbox import OutboxTarget
from client.ingest.settings import Settings, SitePath
from client.ingest.sources import DicomWebSource, DimseSource
from client.ingest.tables import ClinicalSource
from shared_model.bounded import read_at_most
from shared_model.errors import ConfigError
from shared_model.imaging import AdmissionPolicy, PipelineConfig
from shared_model.plain_yaml import check_plain
from shared_model.signing import VerifyKey

MAX_SITE_BYTES = 1 << 20
KEY_BYTES = (32, 1024)


class FolderSource(Settings):
    """An entry `kind: folder` of a site's films: DICOM files below `path`, any names; a DICOMDIR is not followed."""

    kind: Literal["folder"]
    path: SitePath


FilmSource = Annotated[FolderSource | DimseSource | DicomWebSource, Field(discriminator="kind")]


class FilmPolicy(Settings):
    """What the site lets in of films that the standard leaves open; see `shared_model/imaging/policy.py`."""

    burned_in: Literal["quarantine", "look"]
    secondary_capture: Literal["quarantine", "accept"]
    derived: Literal["quarantine", "accept"]
    synthetic_2d: Literal["quarantine", "accept"]
    declared_spacing_mm: float | None = Field(gt=0.0, le=5.0)

    def admission(self) -> AdmissionPolicy:
        """For the decoders."""
        return AdmissionPolicy(**{name: getattr(self, name) for name in asdict(AdmissionPolicy())})


class Imaging(Settings):
    """The study's pipeline, as its protocol states it; see :class:`shared_model.imaging.PipelineConfig`."""

    height: int
    width: int
    spacing_mm: float
    percentiles: tuple[float, float]
    denoise: Literal["none", "median"]
    max_pixels: int
    max_bytes: int

    def pipeline(self) -> PipelineConfig:
        """For the decoders.

        Raises:
            ConfigError: a value is out of range.
        """
        return PipelineConfig(**self.model_dump())


class SiteFile(Settings):
    """A whole site.yaml.

    site: public name. cohort: folder of the prepared cohort, which the trainer reads. work: the importer's own folder
    (what was fetched, de-identified; its memory). key: file of at least 32 secret bytes that its owner alone can read.
    films, clinical: sources; null where the site has none of a kind: its women are then scored by the other alone.
    threshold: least count besides 0 that `mammofed site data` shows. workers: processes that decode; null: one a core.
    lesion_types: of an evaluator alone: CSV with the kind of each woman's cancer, for subgroups; see `lesions`.
    readings: of an evaluator alone: CSV of what radiologists decided of its women; see `client.ingest.readings`.
    results: the PACS that takes results of `mammofed site predict --send`; null: none does.
    coordinator: public key of who signs the passports of models, 64 hexadecimal digits: a model that it did not sign is
    not used. null: a passport is believed by its own word, and a model without one is used and said to have none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    site: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    cohort: SitePath
    work: SitePath
    key: SitePath
    threshold: int = Field(ge=1, le=1000)
    workers: int | None = Field(ge=1, le=256)
    imaging: Imaging
    film_policy: FilmPolicy
    clinical_policy: JoinPolicy
    films: tuple[FilmSource, ...] = Field(max_length=32)
    clinical: tuple[ClinicalSource, ...] = Field(max_length=32)
    results: OutboxTarget | None = None
    lesion_types: SitePath | None = None
    readings: SitePath | None = None
    coordinator: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")

    @field_validator("films", "clinical", mode="before")
    @classmethod
    def _null_is_none(cls, sources: Any) -> Any:
        return () if sources is None else sources

    @field_validator("films")
    @classmethod
    def _one_listener_a_port(cls, films: tuple[Any, ...]) -> tuple[Any, ...]:
        ports = [film.receive_port for film in films if isinstance(film, DimseSource) and film.retrieve == "move"]
        if len(set(ports)) != len(ports):
            raise ValueError("two PACS deliver to one receive_port; give each its own")
        return films

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.films and not self.clinical:
            raise ValueError("films and clinical are both null; name a source of one of them")
        return self

    @model_validator(mode="after")
    def _films_apart(self) -> Self:
        own = {name: Path(os.path.realpath(getattr(self, name))) for name in ("cohort", "work", "key")}
        for number, film in enumerate(self.films, start=1):
            folder = Path(os.path.realpath(film.path)) if isinstance(film, FolderSource) else None
            for name, path in own.items():
                if folder is not None and path.is_relative_to(folder):
                    raise ValueError(f"{name} lies in the folder of films {number}; the next import would take it for "
                                     "films; give the films a folder of their own")  # fmt: skip
        if own["work"].is_relative_to(own["cohort"]) or own["cohort"].is_relative_to(own["work"]):
            raise ValueError("cohort and work lie in one another; the trainer reads the one and must not see the other")
        return self

    def signer(self, key_hex: str | None = None) -> VerifyKey | None:
        """Whose signature a model has to bear: `key_hex` where it is given, else `coordinator`.

        Raises:
            SignatureError: no public key.
        """
        chosen = key_hex or self.coordinator
        return None if chosen is None else VerifyKey.from_hex(chosen)

    def read_key(self) -> bytes:
        """The secret key.

        Raises:
            ConfigError: absent, readable by others, or of a wrong length.
        """
        return read_key(self.key)


def read_site(path: Path) -> SiteFile:
    """Read and check a site.yaml.

    Raises:
        ConfigError: it cannot be read, or names every fault with its place, never a value.
    """
    data = read_at_most(path, MAX_SITE_BYTES, error=ConfigError, remedy="write one with `mammofed site example DIR`")
    try:
        text = data.decode()
        check_plain(text, source=path.name)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(
            f"{path} is not YAML", found=type(error).__name__ if mark is None else f"line {mark.line + 1}",
            remedy="correct it; `mammofed site example DIR` writes one that is right",
        ) from None  # fmt: skip
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not a site file", found=type(values).__name__, expected="names and values")
    try:
        return SiteFile.model_validate(values, context={"folder": path.resolve().parent})
    except ValidationError as error:
        listed = error.errors(include_url=False, include_input=False)[:12]
        faults = "; ".join(_fault(e["loc"], e["msg"]) for e in listed)
        raise ConfigError(f"{path}: {faults}", remedy="`mammofed site example DIR` writes a file with every setting "
                          "and a word on each") from None  # fmt: skip


def read_key(path: Path) -> bytes:
    """A secret key's bytes; see :meth:`SiteFile.read_key`."""
    how = f"make one with `head -c 32 /dev/urandom > {path.name} && chmod 600 {path.name}`"
    try:
        # Not blocking: a pipe in the key's place is refused and not waited for.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as stream:
            mode = os.fstat(stream.fileno()).st_mode
            data = stream.read(KEY_BYTES[1] + 1)
    except OSError as error:
        raise ConfigError(f"the importer's key {path} cannot be read: {error.strerror}", remedy=how) from None
    if not stat.S_ISREG(mode):
        raise ConfigError(f"the importer's key {path} is no file", remedy=how)
    if mode & 0o077:
        raise ConfigError(
            f"the importer's key {path} can be read by others", found=f"mode {stat.S_IMODE(mode):o}", expected="600",
            remedy=f"chmod 600 {path}; if others have read it, begin anew with another key",
        )  # fmt: skip
    if not KEY_BYTES[0] <= len(data) <= KEY_BYTES[1]:
        raise ConfigError(f"the importer's key {path} has a wrong length", found=f"{len(data)} bytes",
                          expected=f"{KEY_BYTES[0]} to {KEY_BYTES[1]}", remedy=how)  # fmt: skip
    return data


def _fault(place: tuple[str | int, ...], words: str) -> str:
    shown = ".".join(str(part) for part in place) or "the file"
    return f"{shown}: {words.removeprefix('Value error, ')}"


