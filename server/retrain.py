"""`mammofed server retrain PASSPORT`: the next study from a released model, as a protocol to be proposed.

The terms are the earlier study's own. What is new: its weights are where training begins, the protocol names the
passport and when the new model may replace the old one, and epsilon bounds both studies together, because the sites'
ledgers hold what was spent before and go on with it by themselves: each site sees the sum before it approves.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from server.rounds.checkpoint import write_bytes
from shared_model.errors import ConfigError, StorageError
from shared_model.passport import Passport, verify
from shared_model.passport.verify import PROTOCOL, WEIGHTS
from shared_model.proposal import protocol_yaml
from shared_model.protocol import Protocol

PROTOCOL_FILE, WEIGHTS_FILE = "protocol.yaml", "initial.safetensors"
ROUND_UP: Final = 100  # epsilon is stated to the hundredth, rounded up


@dataclass(frozen=True)
class Margins:
    """See `shared_model.protocol.ReplacementTerms`."""

    overall: float
    group: float
    least_positives: int


@dataclass(frozen=True, kw_only=True)
class Retraining:
    """What was written. spent: epsilon of the patient who was exposed most before."""

    protocol: Protocol
    protocol_file: Path
    weights_file: Path
    spent: float

    def words(self) -> list[str]:
        """What a coordinator should read before it signs, line by line."""
        terms, privacy = self.protocol.replacement, self.protocol.privacy
        assert terms is not None
        promise = (
            f"epsilon {privacy.epsilon:g} at delta {privacy.delta:g} for both studies together; {self.spent:.2f} of it "
            "was spent at most (simple sum; the sites' ledgers compose more tightly)"
            if self.protocol.private else "none beyond keeping the data at home"
        )  # fmt: skip
        return [
            f"Study     {self.protocol.study}, release {self.protocol.release}, {self.protocol.rounds} rounds",
            f"Begins    from the model of {terms.study}, passport {terms.passport_sha256[:16]}",
            f"Replaces  it if not inferior by more than {terms.margin:g} of AUC overall and {terms.group_margin:g} at "
            f"each site and in each subgroup with {terms.least_positives} women with cancer or more",
            f"Privacy   {promise}",
            f"SHA-256   {self.protocol.sha256}",
        ]  # fmt: skip


def retrain(place: Path, name: str, folder: Path, margins: Margins) -> Retraining:
    """Write `protocol.yaml` and `initial.safetensors` of the next study into `folder`.

    Raises:
        PassportError, SignatureError: the model is not what its passport says.
        ConfigError: its study was not complete, or has the same name.
        ProtocolError: naming the field. StorageError: `folder` holds a protocol already, or cannot be written.
    """
    found = verify(place)
    said, signed = found.signed.passport, found.signed
    if said.status != "COMPLETE" or name == said.study:
        raise ConfigError("the next study cannot go on from this one", found=f"{said.study}, {said.status}",
                          expected="a COMPLETE study of another name")  # fmt: skip
    if (folder / PROTOCOL_FILE).exists():
        raise StorageError(f"{folder / PROTOCOL_FILE} is there already", remedy="give another --output")
    earlier = Protocol.read(found.folder / PROTOCOL)
    values: dict[str, Any] = earlier.model_dump(mode="json")
    spent = spent_by(said)
    values |= {
        "study": name, "release": version("mammofed"),
        "initial_weights": {"sha256": said.model.sha256, "origin": "study",
                            "recipe": f"released {said.study}, passport {signed.sha256}"[:200]},
        "replacement": {
            "study": said.study, "passport_sha256": signed.sha256, "model_sha256": said.model.sha256,
            "epsilon_before": spent, "margin": margins.overall, "group_margin": margins.group,
            "least_positives": margins.least_positives,
        },
    }  # fmt: skip
    if earlier.private:
        values["privacy"]["epsilon"] = -(-(_own_epsilon(earlier) + spent) * ROUND_UP // 1) / ROUND_UP
    protocol = Protocol.create(values, source="the next study")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found.folder / WEIGHTS, folder / WEIGHTS_FILE)
    except OSError as error:
        raise StorageError(f"cannot write into {folder}: {error.strerror or error}") from None
    write_bytes(folder / PROTOCOL_FILE, protocol_yaml(protocol).encode())
    return Retraining(protocol=protocol, protocol_file=folder / PROTOCOL_FILE, weights_file=folder / WEIGHTS_FILE,
                      spent=spent)  # fmt: skip


def spent_by(said: Passport) -> float:
    """Epsilon of the patient who was exposed most; of a site whose answers were lost, all of its budget."""
    rows = said.privacy.sites
    return max((row.budget if row.unheard or row.epsilon is None else row.epsilon for row in rows), default=0.0)


def _own_epsilon(earlier: Protocol) -> float:
    """What the earlier study's rounds were planned to cost by themselves."""
    before = 0.0 if earlier.replacement is None else earlier.replacement.epsilon_before
    return earlier.privacy.epsilon - before
