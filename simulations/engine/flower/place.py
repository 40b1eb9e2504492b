"""Where a Flower run has its study: told by the launcher, or found by the run's number for `flwr run .`."""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context

from shared_model.errors import ConfigError


def run_directory(context: Context) -> Path:
    """The run directory of this Flower run; the same in ServerApp and ClientApp.

    Run configuration: `run-dir`, an absolute path, names it; where it is empty, `runs-dir` is the folder that holds one
    directory a run (empty: `~/.cache/mammofed/flower-runs`).

    Raises:
        ConfigError: a path that is no absolute one.
    """
    told, base = (str(context.run_config.get(key, "")) for key in ("run-dir", "runs-dir"))
    if told:
        folder = Path(told)
    else:
        default = Path.home() / ".cache" / "mammofed" / "flower-runs"
        folder = (Path(base).expanduser() if base else default) / str(context.run_id)
    if not folder.is_absolute():
        raise ConfigError("Flower's run configuration: a relative path", found=told or base, expected="an absolute one",
                          remedy="Flower's processes start elsewhere")  # fmt: skip
    return folder
