"""What a trainer keeps warm for one site: cohort, split, protocols, ledger, replies, models; used by its handlers."""

from __future__ import annotations

import fcntl
import functools
import json
import logging
import os
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from client.privacy.accountant import Account
from client.privacy.ledger import Ledger
from client.privacy.policy import Decision, decide
from client.trainer.config import SiteConfig
from client.trainer.models import WarmModels
from client.trainer.record import SiteRecord
from client.trainer.replies import ReplyStore
from client.trainer.roster import rows_by_part, split_terms
from client.trainer.withdrawn import check_not_withdrawn
from client.training.features import FeatureCache
from client.training.update import trained_names
from shared_model.cohort import Cohort
from shared_model.contract import Contract, load_contract
from shared_model.errors import (
    CohortError,
    ConfigError,
    PrivacyError,
    ProtocolError,
    SignatureError,
    StorageError,
    WeightsError,
)
from shared_model.fusion import FusionModel, load_arrays
from shared_model.lesion_types import LESION_TYPE
from shared_model.messages import Arrays, check_shapes, weights_sha256
from shared_model.protocol import Protocol
from shared_model.readings import READINGS
from shared_model.signed_protocol import SignedProtocol

KEPT_REPLIES = 4      # the coordinator repeats only the round that it is in; each reply is as large as the model
LOAD_BYTES = 64 << 20  # pixels in memory at a time while films are encoded or scored
MAX_PROTOCOLS = 100   # what a describe reply can list

log = logging.getLogger("mammofed.trainer")


class Site:
    """One hosted site. Opening it takes the lock on its state, so that no second trainer spends the same budget.

    Args:
        config: the site's own settings.
        models: shared by all sites of a process that compute in turn.
        features: descriptors of its films where somebody keeps them for longer than this object lives.

    Raises:
        ConfigError: the state is in use, or the device does not exist.
        CohortError: the cohort is absent, damaged, or another site's.
        PrivacyError: the split is not the one that this state began with.
        AuditError, SignatureError, StorageError: with a coordinator, the audit log or its key cannot be used, or the
            ledger is not the one whose head that log has last.

    Attributes:
        record: requests and audit log of a site with a coordinator; None where nothing is signed.
    """

    def __init__(self, config: SiteConfig, models: WarmModels, *, features: FeatureCache | None = None) -> None:
        self.config, self._models = config, models
        self.device = _device(config.device)
        self.cohort = Cohort.open(config.cohort)
        if config.role == "site" and self.cohort.site != config.site:
            raise CohortError("the cohort was prepared for another site", found=self.cohort.site, expected=config.site)
        if config.role == "site" and LESION_TYPE in self.cohort.attribute_names:
            raise CohortError(f"the cohort of {config.site} says which kind of lesion its women have",
                              found=f"attribute {LESION_TYPE}", expected="it in an evaluator's cohort alone",
                              remedy="take `lesion_types` out of site.yaml and import again")  # fmt: skip
        read = sorted({*READINGS} & {*self.cohort.attribute_names})
        if config.role == "site" and read:
            raise CohortError(f"the cohort of {config.site} says what radiologists decided of its women",
                              found=f"attributes {', '.join(read)}", expected="them in an evaluator's cohort alone",
                              remedy="take `readings` out of site.yaml and import again")  # fmt: skip
        self._protocols: dict[tuple[str, int, int], Protocol] = {}
        self.record: SiteRecord | None = None
        self._lock = _claim(config.state)
        try:
            _pin_split(config)
            self._indices = rows_by_part(config, self.cohort)
            self.ledger = Ledger(config.state / "ledger.json")
            self.features = features or FeatureCache(self.cohort, load_bytes=LOAD_BYTES)
            self.replies = ReplyStore(config.state / "replies", keep=KEPT_REPLIES)
            if config.coordinator is not None:
                self.record = SiteRecord(config.state, site=config.site, coordinator=config.coordinator,
                                         release=release(), ledger=self.ledger)  # fmt: skip
        except BaseException:  # who cannot be opened keeps nobody else out
            self.close()
            raise

    def open(self) -> None:
        """Take the lock on the state again after :meth:`close`; what is kept warm stays.

        Raises:
            ConfigError, PrivacyError: as at the first time.
        """
        if self._lock < 0:
            self._lock = _claim(self.config.state)
            try:
                _pin_split(self.config)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Let go of the lock on the state (the end of the process does so, too)."""
        if self.record is not None:
            self.record.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def indices(self, split: str) -> NDArray[np.int64]:
        """Positions of a split's patients in the cohort, ascending.

        Raises:
            CohortError: nobody is in it.
        """
        chosen = np.asarray(self._indices[split], dtype=np.int64)
        if not len(chosen):
            raise CohortError(f"no patient of {self.config.site} is in the split `{split}`", expected="at least one",
                              remedy="prepare more patients")  # fmt: skip
        return chosen

    def pseudonyms(self, split: str) -> list[str]:
        """The patients of a split, for the ledger: it counts what each of them has spent."""
        return [self.cohort.pseudonyms[position] for position in self.indices(split)]

    def approved(self) -> dict[str, Protocol]:
        """The protocols on this site's disk by hash. One that is damaged, or not signed by the coordinator where there
        is one, is passed over, loudly."""
        found: dict[str, Protocol] = {}
        for path in sorted(self.config.protocols.glob("*.json"))[:MAX_PROTOCOLS]:
            status = path.stat()
            key = (path.name, status.st_mtime_ns, status.st_size)
            if key not in self._protocols:
                try:
                    self._protocols[key] = self._read(path)
                except (ProtocolError, SignatureError) as error:
                    log.warning("%s: not served: %s", self.config.site, error)
                    continue
            protocol = self._protocols[key]
            found[protocol.sha256] = protocol
        return found

    def _read(self, path: Path) -> Protocol:
        coordinator = self.config.coordinator
        if coordinator is None:
            return Protocol.read(path)
        return SignedProtocol.read(path, coordinator=coordinator, release=release()).protocol

    def protocol(self, sha256: str, *, study: str) -> Protocol:
        """The approved protocol that a request names, checked against what is installed and prepared here.

        Raises:
            ProtocolError: not approved, of another study or release, or the site has no part in it.
            PrivacyError: the site's own policy forbids it, whoever approved it.
            CohortError: the cohort was prepared by another contract or pipeline, or does not fit the public size.
        """
        check_not_withdrawn(self.config.protocols.parent, study)
        protocol = self.approved().get(sha256)
        if protocol is None:
            raise ProtocolError(f"{self.config.site} has not approved this protocol", found=sha256[:12],
                                remedy="ask the site's administrator to read and approve it")  # fmt: skip
        if protocol.study != study:
            raise ProtocolError("the request names another study than its protocol", found=study[:64],
                                expected=protocol.study)  # fmt: skip
        if protocol.release != release():
            raise ProtocolError(f"{self.config.site} runs another release than the protocol asks for", found=release(),
                                expected=protocol.release, remedy="install that release at the site")  # fmt: skip
        if self.config.role == "site":  # an evaluator trains nobody, so that there is no patient to protect from it
            self.decision(protocol).check(self.config.site)
        self._check_cohort(protocol)
        return protocol

    def fields(self, protocol: Protocol) -> tuple[tuple[int, ...], ...]:
        """Columns of each clinical field, by the contract that is installed here.

        Raises:
            ProtocolError: the protocol was written for another contract.
        """
        contract = _contract()
        if contract.sha256 != protocol.contract.sha256:
            raise ProtocolError(f"{self.config.site} has another data contract than the protocol's",
                                found=contract.version, expected=protocol.contract.version,
                                remedy="install the protocol's release at the site")  # fmt: skip
        return tuple(tuple(columns) for columns in contract.groups.values())

    def decision(self, protocol: Protocol) -> Decision:
        """What this site's policy makes of a protocol: refusals, and what is done otherwise than it says."""
        return decide(self.config, protocol, len(self._indices["train"]))

    def _check_cohort(self, protocol: Protocol) -> None:
        cohort, pipeline = self.cohort, protocol.pipeline
        for what, found, expected in (
            ("data contract", cohort.contract_sha256, protocol.contract.sha256),
            ("imaging pipeline", cohort.pipeline_sha256, pipeline.sha256),
            ("film size", (cohort.height, cohort.width), (pipeline.height, pipeline.width)),
            ("number of clinical features", cohort.n_features, protocol.contract.n_features),
        ):
            if found != expected:
                raise CohortError(f"the cohort of {self.config.site} has another {what} than the protocol",
                                  found=found, expected=expected, remedy="prepare the cohort again")  # fmt: skip
        cohort.require_others(protocol.model.others)
        if self.config.role == "site":
            self._check_size(protocol)

    def _check_size(self, protocol: Protocol) -> None:
        """Sampling runs over the true patients, the divisor is the public size: far more patients than that would make
        steps beyond the norm that the coordinator expects."""
        public, true = protocol.federation.site(self.config.site).patients, len(self.indices("train"))
        if true > 2 * public:
            raise CohortError(f"{self.config.site} has far more training patients than the protocol says",
                              found=f"more than {2 * public}", expected=f"about {public}",
                              remedy="ask the coordinator for a protocol with the site's present size")  # fmt: skip

    def model(self, protocol: Protocol, arrays: Arrays, claimed_sha256: str) -> FusionModel:
        """The warm model with the weights of a request in it.

        Raises:
            WeightsError: the tensors are not those that the request names, or not finite.
            MessageError: a tensor is missing, unknown, or of another shape.
        """
        model, shapes = self._models.take(protocol, self.device)
        check_shapes(arrays, shapes)
        found = weights_sha256(arrays)
        if found != claimed_sha256:
            raise WeightsError("weights were changed on the way", found=found[:12], expected=claimed_sha256[:12])
        load_arrays(model, arrays)
        return model

    def trained(self, protocol: Protocol, round_number: int) -> frozenset[str]:
        """Names of the tensors that the phase of a round trains."""
        model, _ = self._models.take(protocol, self.device)
        return trained_names(model, protocol, round_number)

    def warm(self, protocol: Protocol) -> None:
        """Build the protocol's model and load the accountant, so that no round has to wait for them."""
        self._models.take(protocol, self.device)
        if protocol.private and self.config.role == "site":
            used = self.decision(protocol).apply(protocol)
            Account.from_lists(used.mechanisms(1)).epsilon(delta=protocol.privacy.delta)


@functools.cache
def _contract() -> Contract:
    return load_contract()


def study_folder(protocol: Protocol) -> str:
    """Name of the folder of a study's replies: two protocols of one name never share replies."""
    return f"{protocol.study}-{protocol.sha256[:16]}"


def release() -> str:
    """The installed release of MammoFed."""
    return version("mammofed")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError("device: there is no such GPU", found=name, expected=f"{torch.cuda.device_count()} GPUs seen",
                          remedy="use `auto` or `cpu`")  # fmt: skip
    return device


def _claim(state: Path) -> int:
    """Hold an exclusive lock in `state` until the process ends (the kernel drops it, however the process ends)."""
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(state / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StorageError("the site's state cannot be written", found=error.strerror) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ConfigError(f"another trainer uses the state {state}", remedy="stop it first") from None
    return handle


def _pin_split(config: SiteConfig) -> None:
    """Write the split's definition on first use and refuse another one afterwards.

    `train` and `test` are accounted as disjoint patients; another salt would put a woman into both.
    """
    path = config.state / "split.json"
    wanted = split_terms(config)
    if path.exists():
        try:
            pinned = json.loads(path.read_text())
        except ValueError:
            raise StorageError("the site's split.json is damaged", remedy="restore it from backup") from None
        if pinned != wanted:
            raise PrivacyError(f"the split of {config.site} was changed after it was used", found=wanted,
                               expected=pinned, remedy="use the first salt, fractions and roster again")  # fmt: skip
        return
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(json.dumps(wanted))
        temporary.replace(path)
    except OSError as error:
        raise StorageError("the site's state cannot be written", found=error.strerror) from None
