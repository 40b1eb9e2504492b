"""What all entries of a site.yaml share; used by every source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo


def _beside_the_file(path: Path, info: ValidationInfo) -> Path:
    """Relative paths are relative to the site's file: validate with `context={"folder": site_file.parent}`."""
    folder = (info.context or {}).get("folder")
    return path if folder is None or path.is_absolute() else Path(folder) / path


SitePath = Annotated[Path, AfterValidator(_beside_the_file)]


class Settings(BaseModel):
    """Frozen, nothing unknown, nothing of a value in an error's repr."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)
