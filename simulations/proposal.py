"""`mammofed simulate protocol`: the protocol of a real study, with its noise calibrated and its initial weights made.

It stands here and not at the server, because the server may import nothing of a client, and noise is calibrated by the
accountant that sites count with. What it writes is signed by `mammofed server propose`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shared_model.contract import load_contract
from shared_model.errors import ConfigError, StorageError
from shared_model.proposal import protocol_yaml
from shared_model.protocol import Protocol
from simulations.composition import compose_study
from simulations.launch import INITIAL, one_child
from simulations.parties import write_small
from simulations.plan import Config, build_protocol, calibrate_and_initialise, phases, pipeline_of
from simulations.released import check_weights
from simulations.strategy import check_strategy

PROTOCOL: Final = "protocol.yaml"
NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")  # as shared_model.protocol.Name


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What was written. protocol_file, weights_file: both are needed by `propose`."""

    protocol: Protocol
    protocol_file: Path
    weights_file: Path

    def words(self) -> list[str]:
        """What a person should read before signing, line by line."""
        terms, privacy = self.protocol.federation, self.protocol.privacy
        sites = ", ".join(f"{site.name} {site.patients} (weight {site.weight:.3f})" for site in terms.sites)
        promise = (
            f"epsilon {privacy.epsilon:g} at delta {privacy.delta:g} for each patient over all rounds, "
            f"sigma {privacy.noise_multiplier:.3f}" if self.protocol.private else "none beyond keeping the data at home"
        )  # fmt: skip
        return [
            f"Study          {self.protocol.study}, release {self.protocol.release}, {self.protocol.rounds} rounds",
            f"Sites          {sites}; training patients, rounded and public",
            f"Quorum         {terms.quorum} of {terms.sites_per_round}; a round waits {terms.deadline_s:g} s, "
            f"{terms.attempts} attempts",
            f"Privacy        {promise}",
            "Secure sum     " + ("the coordinator sees the sum of updates only; sites compare each other's trainer keys"
                                 if self.protocol.summed else "none: each update reaches the coordinator by itself"),
            f"SHA-256        {self.protocol.sha256}",
        ]


def draft(sites: Mapping[str, int], folder: Path, overrides: Sequence[str]) -> Proposal:
    """Write `protocol.yaml` and `initial.safetensors` of a study of these hospitals into `folder`.

    Args:
        sites: training patients by name; rounded to `cohort.round_patients_to`, and only that is kept.
        overrides: Hydra's, as `mammofed simulate` takes them; `name=` names the study.

    Raises:
        ConfigError, ProtocolError, WeightsError: naming the setting.
        StorageError: `folder` holds a protocol already, or cannot be written.
    """
    config = {**compose_study(overrides), "sites": len(sites)}
    _check(config, sites)
    if (folder / PROTOCOL).exists():
        raise StorageError(f"{folder / PROTOCOL} is there already", remedy="give another --output, or take it away")
    contract, pipeline = load_contract(), pipeline_of(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with one_child() as child:  # the noise and the model need torch
            sigmas, initial = child.submit(
                calibrate_and_initialise, config, contract.n_features, folder / INITIAL
            ).result()
        protocol = build_protocol(
            config, patients=sites, sigmas=sigmas, initial_weights=initial,
            contract={"version": contract.version, "sha256": contract.sha256, "n_features": contract.n_features},
            pipeline=pipeline.terms(),
        )  # fmt: skip
        write_small(folder / PROTOCOL, protocol_yaml(protocol))
    except OSError as error:
        raise StorageError(f"cannot write into {folder}: {error.strerror or error}",
                           remedy="make room on the disk, or give rights to it") from None  # fmt: skip
    return Proposal(protocol=protocol, protocol_file=folder / PROTOCOL, weights_file=folder / INITIAL)


def read_sites(texts: Sequence[str]) -> dict[str, int]:
    """`NAME=PATIENTS` as typed -> patients by name.

    Raises:
        ConfigError: another form, a name twice, or none at all.

    >>> read_sites(["north=420", "south=300"])
    {'north': 420, 'south': 300}
    """
    found: dict[str, int] = {}
    for text in texts:
        name, _, count = text.partition("=")
        if not NAME.fullmatch(name) or not count.isdecimal() or not count.isascii() or not 1 <= len(count) <= 9:
            raise ConfigError("--site: another form", found=text[:80],
                              expected="NAME=PATIENTS, the name in lower-case letters, digits, - and _")  # fmt: skip
        if name in found:
            raise ConfigError("--site: a name stands twice", found=name)
        if int(count) < 1:
            raise ConfigError("--site: no patients", found=text)
        found[name] = int(count)
    if not found:
        raise ConfigError("--site: none is given", expected="--site NAME=PATIENTS for each hospital")
    return found


def _check(config: Config, sites: Mapping[str, int]) -> None:
    """What can be refused before the noise is calibrated, which takes some seconds."""
    phases(config)
    check_strategy(config)
    if len(sites) < int(config["strategy"]["quorum"] or 1):
        raise ConfigError("strategy.quorum: more than there are sites", found=config["strategy"]["quorum"],
                          expected=f"at most {len(sites)}")  # fmt: skip
    check_weights(config)
