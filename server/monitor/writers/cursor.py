"""Where a writer that keeps its record elsewhere goes on: one small JSON file beside the study, replaced atomically."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class Cursor(BaseModel):
    """last: number of the last event that was handed on; run: the other tool's name for this study, empty: none yet."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    last: int = Field(default=0, ge=0)
    run: str = Field(default="", max_length=200)

    @classmethod
    def read(cls, path: Path) -> Cursor:
        """The file; the beginning where there is none or it is damaged: then all is told again."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return cls()

    def write(self, path: Path) -> None:
        """Replace the file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(self.model_dump()))
        new.replace(path)
