"""The parties of a simulated study as folders: each one's split, trainer settings, state and approved protocol."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from client.trainer.config import SiteConfig
from shared_model.protocol import Protocol

EVALUATOR = "evaluator"  # name of the coordinator's own trainer
HELD_OUT = "held_out"    # name of the population that it holds


def split_of(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Salt and fractions of a party's patient-wise split."""
    if name == HELD_OUT:
        share = float(config["cohort"]["selection_fraction"])
        fractions = {"selection": share, "test": 1.0 - share}
    else:
        share = float(config["cohort"]["test_fraction"])
        fractions = {"train": 1.0 - share, "test": share}
    # A study that goes on from a released model keeps its split: who trained it must not judge its successor.
    return {"salt": config.get("salt") or f"{config['name']}-{config['seed']}", "fractions": fractions}


def install_sites(config: Mapping[str, Any], run_dir: Path, protocol: Protocol, cohorts: dict[str, Path]) -> list[Path]:
    """Lay out each party's trainer as a hospital would have it: site.json, state, approved protocols. Sites by name,
    the evaluator last."""
    files = []
    for name in [*sorted(n for n in cohorts if n != HELD_OUT), HELD_OUT]:
        party = EVALUATOR if name == HELD_OUT else name
        home = run_dir / "sites" / party
        (home / "protocols").mkdir(parents=True, exist_ok=True)
        (home / "state").mkdir(exist_ok=True)
        write_small(home / "protocols" / f"{protocol.sha256[:16]}.json", protocol.to_json())
        site = SiteConfig(
            coordinator=None, private_only=False,  # all parties live on this machine
            site=party, role="evaluator" if name == HELD_OUT else "site", cohort=cohorts[name].resolve(),
            state=(home / "state").resolve(), protocols=(home / "protocols").resolve(),
            device=config["engine"]["device"], **split_of(config, name),
        )  # fmt: skip
        path = home / "site.json"
        write_small(path, site.to_json())
        files.append(path)
    return files


def write_small(path: Path, text: str) -> None:
    """Write a small file atomically."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
