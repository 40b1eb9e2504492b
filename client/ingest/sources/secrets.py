"""A password or token that a site's file points to and never holds; read by the sources at the moment of use."""

from __future__ import annotations

import os
import stat

from pydantic import Field, model_validator

from client.ingest.settings import Settings, SitePath
from shared_model.errors import ConfigError

MAX_SECRET_BYTES = 4096


class Secret(Settings):
    """Where a secret is: `file:` (readable by its owner only, one line) or `env:` (name of a variable); one of them."""

    file: SitePath | None = None
    env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")

    @model_validator(mode="after")
    def _one(self) -> Secret:
        if (self.file is None) == (self.env is None):
            raise ValueError("name either file or env, never the secret itself")
        return self

    def read(self) -> str:
        """The secret. It must go into no message, log or repr.

        Raises:
            ConfigError: absent, readable by others, empty, too long, or not one line of printable ASCII.
        """
        where = f"the secret file {self.file}" if self.file is not None else f"the variable {self.env}"
        text = self._of_file(where) if self.file is not None else os.environ.get(self.env or "")
        if not text:
            raise ConfigError(f"{where} is empty or not set", remedy="put the password or token into it")
        if len(text) > MAX_SECRET_BYTES or not (text.isascii() and text.isprintable()):
            raise ConfigError(f"{where} holds no usable secret", expected="one line of printable ASCII")
        return text

    def _of_file(self, where: str) -> str:
        assert self.file is not None
        try:
            handle = os.open(self.file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would be waited for
            with os.fdopen(handle, "rb", buffering=0) as stream:
                mode = os.fstat(handle).st_mode  # of what was opened, not of what may lie there a moment later
                data = (stream.read(MAX_SECRET_BYTES + 2) or b"") if stat.S_ISREG(mode) else b""
        except OSError as error:
            raise ConfigError(f"{where} cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(mode):
            raise ConfigError(f"{where} is not a regular file")
        if mode & 0o077:
            raise ConfigError(f"{where} can be read by others", found=f"mode {stat.S_IMODE(mode):04o}",
                              expected="0600", remedy=f"chmod 600 {self.file}")  # fmt: skip
        return data.decode("latin-1").removesuffix("\n").removesuffix("\r")
