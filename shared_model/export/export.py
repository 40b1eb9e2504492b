"""A verified model -> an ONNX file with its passport's hash in it, written only after the parity check; by the CLI."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shared_model.cohort.cohort import Cohort
from shared_model.errors import CohortError, ConfigError, ExportError, StorageError
from shared_model.export.graph import INPUTS, OPSET, OUTPUTS, load_model, require, write_graph
from shared_model.export.parity import Parity, check_parity
from shared_model.messages import Arrays
from shared_model.passport.signed import SignedPassport
from shared_model.passport.verify import PROTOCOL, WEIGHTS, read_weights, verify
from shared_model.protocol import Protocol
from shared_model.signing import VerifyKey

WOMEN: Final = 48
MAX_SITE_BYTES: Final = 1 << 16
PREFIX: Final = "mammofed."


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written. sha256: of the file."""

    path: Path
    sha256: str
    bytes: int
    parity: Parity
    passport: SignedPassport


def export_onnx(
    folder: Path, path: Path, *, cohort: Path | None = None, women: int = WOMEN, key: VerifyKey | None = None
) -> Exported:
    """Export the model of a folder that has a passport.

    Args:
        folder: a run directory, or what a coordinator handed out.
        path: of the ONNX file; replaced as a whole, and only after the check.
        cohort: prepared, for the check; None: that of the run's evaluator.
        women: how many of it. key: the passport's signer, known from elsewhere.

    Raises:
        SignatureError, PassportError: the model is not what its passport says.
        CohortError, ConfigError: no cohort is there, or it was prepared otherwise; or the extra is not installed.
        ExportError: the graph is not the model. StorageError: the file cannot be written.
    """
    require("onnx")
    signed = verify(folder, key=key).signed
    root = folder if folder.is_dir() else folder.parent
    protocol, weights = Protocol.read(root / PROTOCOL), read_weights(root / WEIGHTS)
    women_of = Cohort.open(cohort if cohort is not None else evaluator_cohort(root))
    women_of.require(contract_sha256=protocol.contract.sha256, pipeline_sha256=protocol.pipeline.sha256)
    if len(women_of) == 0:
        raise CohortError(f"{women_of.path} holds nobody to check the export on")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".onnx-", dir=path.parent) as work:
            draft = Path(work) / "model.onnx"
            parity = _draft(draft, signed, protocol, weights, women_of, women=women)
            data = draft.read_bytes()
            with draft.open("rb") as stream:
                os.fsync(stream.fileno())
            draft.replace(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}", remedy="make room, ask again") from None
    return Exported(path=path, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), parity=parity, passport=signed)


def evaluator_cohort(run_dir: Path) -> Path:
    """The cohort of a simulated run's evaluator.

    Raises:
        ConfigError: the folder is no such run's.
    """
    path = run_dir / "sites" / "evaluator" / "site.json"
    try:
        with path.open("rb") as stream:
            return Path(str(json.loads(stream.read(MAX_SITE_BYTES))["cohort"]))
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError("no real cases to check the export on", found=f"no cohort in {path}",
                          remedy="name a prepared cohort: --cohort FOLDER") from None  # fmt: skip


def metadata(signed: SignedPassport, parity: Parity) -> dict[str, str]:
    """What the file says of itself, as texts; JSON where it is more than one."""
    said = signed.passport
    values: dict[str, object] = {
        "study": said.study, "status": said.status, "passport_sha256": signed.sha256,
        "protocol_sha256": said.protocol_sha256, "weights_sha256": said.model.sha256,
        "contract_sha256": said.data.contract_sha256, "contract_version": said.data.contract_version,
        "pipeline_sha256": said.data.pipeline_sha256, "release": said.software.release, "opset": OPSET,
        "temperature": said.model.temperature or 1.0, "thresholds": said.model.thresholds,
        "specificity": said.model.specificity, "inputs": dict(INPUTS), "outputs": dict(OUTPUTS),
        "limits": list(said.limits),
        "parity": {"women": parity.women, "answers": parity.answers, "greatest_difference": parity.worst},
    }  # fmt: skip
    return {f"{PREFIX}{k}": v if isinstance(v, str) else json.dumps(v, sort_keys=True) for k, v in values.items()}


def _draft(
    draft: Path, signed: SignedPassport, protocol: Protocol, weights: Arrays, cohort: Cohort, *, women: int
) -> Parity:
    import onnx

    exported = load_model(protocol, weights, temperature=signed.passport.model.temperature or 1.0)
    write_graph(exported, draft)
    parity = check_parity(exported, draft, cohort, women=women)
    graph = onnx.load(draft)
    onnx.helper.set_model_props(graph, metadata(signed, parity))
    graph.producer_name, graph.producer_version = "mammofed", signed.passport.software.release
    graph.doc_string = f"Study {signed.passport.study}; read the limits in its metadata, and its passport, before use."
    try:
        onnx.checker.check_model(graph, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError("the graph is no valid ONNX", found=str(error)[:300], remedy="report this") from None
    onnx.save(graph, draft)
    check_parity(exported, draft, cohort, women=1)  # the very bytes that are handed out are read once more
    return parity
