"""Starts the HTTP service of `site serve` after checking who may reach it; called by the command line."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import click
import uvicorn

from client.inference.reference import site_reference
from client.inference.scorer import Scorer
from client.inference.serve import LOOPBACK, Service, make_app
from client.ingest.site_file import SiteFile
from shared_model.contract import load_contract
from shared_model.errors import ConfigError
from shared_model.released import ReleasedModel

LEAST_TOKEN, MAX_TOKEN = 16, 512
MOST_AT_ONCE = 64  # requests in work or waiting; more get 503


def listen(
    site: SiteFile, released: ReleasedModel, *, host: str, port: int, token_file: Path | None, names: tuple[str, ...],
    workers: int | None,
) -> None:  # fmt: skip
    """Serve until the process is told to end.

    Raises:
        ConfigError: an address beyond loopback without a token, or a token that others can read.
    """
    token = None if token_file is None else read_token(token_file)
    if host not in LOOPBACK and token is None:
        raise ConfigError("an address that other machines can reach needs a token", found=host,
                          expected="127.0.0.1, or --token FILE",
                          remedy="umask 077; openssl rand -hex 32 > token; --token token")  # fmt: skip
    scorer = Scorer(released, load_contract())
    reference = site_reference(scorer, site.cohort, site.work / "inference")
    service = Service(site, scorer, reference, workers=workers or os.cpu_count() or 1)
    hosts = (*names, host) if host not in ("0.0.0.0", "::") else names  # noqa: S104
    app = make_app(service, token=token, hosts=hosts)
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False, server_header=False,
                            limit_concurrency=MOST_AT_ONCE, timeout_keep_alive=15)  # fmt: skip
    click.echo(f"Serving     http://{host}:{port} ({'token' if token else 'this machine only'}), /openapi.json")
    uvicorn.Server(config).run()


def read_token(path: Path) -> str:
    """The secret in a file that its owner alone can read.

    Raises:
        ConfigError: readable by others, or too short.
    """
    with path.open("rb") as stream:
        mode, data = os.fstat(stream.fileno()).st_mode, stream.read(MAX_TOKEN + 1)
    if mode & 0o077:
        raise ConfigError(f"{path} can be read by others", found=f"mode {stat.S_IMODE(mode):o}", expected="600",
                          remedy=f"chmod 600 {path}")  # fmt: skip
    text = data.decode("ascii", "replace").strip()
    if not LEAST_TOKEN <= len(text) <= MAX_TOKEN or not text.isprintable() or "\ufffd" in text:
        raise ConfigError(f"{path} is no token", found=f"{len(text)} letters", expected=f"{LEAST_TOKEN} or more, ASCII",
                          remedy=f"openssl rand -hex 32 > {path}")  # fmt: skip
    return text
