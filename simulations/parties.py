"""The parties of a simulated study as folders: each one's split, trainer settings, state and approved protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from client.trainer.config import SiteConfig
from client.trainer.peers import confirm_peers, trainer_key
from server.rounds.signer import ONE_MACHINE, one_machine_coordinator, one_machine_key
from shared_model.protocol import Protocol
from shared_model.signed_protocol import SignedProtocol

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


def install_sites(
    config: Mapping[str, Any], run_dir: Path, protocol: Protocol, cohorts: Mapping[str, Path],
    rosters: Mapping[str, Path] | None = None,
) -> list[Path]:  # fmt: skip
    """Lay out each party's trainer as a hospital would have it: site.json, state, approved protocols. Sites by name,
    the evaluator last.

    A study with a secure sum has keys, signatures and confirmed peers here as well: the launcher is everybody's
    administrator.

    rosters: by site, who is in which part, where a design says so instead of the salted hash.
    """
    parties = [*sorted(n for n in cohorts if n != HELD_OUT), HELD_OUT]
    coordinator = one_machine_coordinator(run_dir) if protocol.summed else None
    files = []
    for name in parties:
        party = EVALUATOR if name == HELD_OUT else name
        home = run_dir / "sites" / party
        (home / "protocols").mkdir(parents=True, exist_ok=True)
        (home / "state").mkdir(exist_ok=True)
        write_small(home / "protocols" / f"{protocol.sha256[:16]}.json", _approved(protocol, run_dir))
        site = SiteConfig(
            coordinator=coordinator, private_only=False,  # all parties live on this machine
            site=party, role="evaluator" if name == HELD_OUT else "site", cohort=cohorts[name].resolve(),
            state=(home / "state").resolve(), protocols=(home / "protocols").resolve(),
            device=config["engine"]["device"], **split_of(config, name),
            roster=(rosters or {}).get(name),
        )  # fmt: skip
        path = home / "site.json"
        write_small(path, site.to_json())
        files.append(path)
    if protocol.summed:
        _confirm_all(run_dir, [name for name in parties if name != HELD_OUT])
    return files


def _approved(protocol: Protocol, run_dir: Path) -> str:
    """What lies on a party's disk once it has approved: the protocol, signed where anything is."""
    if not protocol.summed:
        return protocol.to_json()
    return SignedProtocol.sign(protocol, name=ONE_MACHINE, key=one_machine_key(run_dir)).to_json()


def _confirm_all(run_dir: Path, sites: Sequence[str]) -> None:
    """Every site has compared every other one's words."""
    keys = {site: trainer_key(run_dir / "sites" / site / "state").public for site in sites}
    for site in sites:
        confirm_peers(run_dir / "sites" / site, {other: key for other, key in keys.items() if other != site})


def write_small(path: Path, text: str) -> None:
    """Write a small file atomically."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)
