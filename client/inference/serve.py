"""`site serve`: the same scores as a local HTTP service (FastAPI; OpenAPI at /openapi.json).

On loopback without a token, beyond it with one only. Nothing that comes is kept: films lie in a private folder of their
own until they are decoded, by worker processes that a damaged film cannot leave; no request is logged with its content.
Answers carry no identity, because a request is answered to who sent it.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import queue
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import numpy as np
import pandas as pd
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from client.inference.cases import Case, Film
from client.inference.predict import DISCLAIMER, predict
from client.inference.records import record
from client.inference.reference import SiteReference
from client.inference.scorer import Scorer
from client.ingest.site_file import SiteFile
from shared_model.errors import ImagingError, MammoFedError
from shared_model.explanation import factor_shares, leave_out
from shared_model.imaging import FilmPool, View

MAX_FILMS = 8
MAX_BODY_BYTES = 192 << 20  # four films of 28 MB in base64, and room
LOOPBACK = ("127.0.0.1", "::1", "localhost")
Cell = str | float | int | bool | None


class PredictionRequest(BaseModel):
    """One woman. films: DICOM files in base64, any order, at most one of each view; clinical: fields of the data
    contract (GET /v1/contract lists them), numbers in the contract's unit; what is not known is left out or null."""

    model_config = ConfigDict(extra="forbid")

    films: list[str] = Field(default_factory=list, max_length=MAX_FILMS)
    clinical: dict[Annotated[str, Field(max_length=80)], Cell] = Field(default_factory=dict, max_length=256)
    explain: bool = False


class Service:
    """What the routes call; thread-safe.

    Args:
        site: pipeline and rules for films. workers: films that are decoded at a time.
    """

    def __init__(self, site: SiteFile, scorer: Scorer, reference: SiteReference | None, *, workers: int) -> None:
        self._site, self._scorer, self._reference = site, scorer, reference
        self._pipeline = site.imaging.pipeline()
        scorer.check_pipeline(self._pipeline)
        self._pools: queue.Queue[FilmPool] = queue.Queue()
        self._all: list[FilmPool] = []
        self._workers, self._model = workers, Lock()

    def __enter__(self) -> Service:
        for _ in range(self._workers):
            pool = FilmPool(
                self._pipeline, workers=1, policy=self._site.film_policy.admission(),
                declared_spacing_mm=self._site.film_policy.declared_spacing_mm, film_seconds=60.0,
            )  # fmt: skip
            self._all.append(pool.__enter__())
            self._pools.put(pool)
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._all:
            pool.__exit__(None, None, None)

    def answer(self, asked: PredictionRequest) -> dict[str, Any]:
        """One woman's result.

        Raises:
            ValueError: in words, for what cannot be scored.
        """
        case = Case(pseudonym="", patient_id="", exam="", films=self._films(asked.films), features=self._row(asked))
        if not case.films and case.features is None:
            raise ValueError("neither a film nor a known clinical field was sent")
        with self._model:  # explanations set the model up for themselves, so one at a time
            one = predict(self._scorer, [case], pipeline=self._pipeline, reference=self._reference)[0]
            found = record(one, self._scorer)
            if asked.explain:
                found |= self._explained(case)
        for name in ("patient_id", "pseudonym"):
            del found[name]
        return found | {"without": list(self._scorer.without), "disclaimer": DISCLAIMER}

    def model(self) -> dict[str, Any]:
        """Which model answers."""
        release = self._scorer.released.release
        vouched = self._scorer.released.vouched
        return {**self._scorer.identity, "disclaimer": DISCLAIMER, "passport": vouched.plain(),
                "vouched": vouched.words, "without": list(self._scorer.without), "prevalence": release.prevalence,
                "specificity": release.specificity, "bands": [asdict(band) for band in self._scorer.bands()],
                "test": release.test.model_dump() if release.test else None}  # fmt: skip

    def contract(self) -> list[dict[str, Any]]:
        """The clinical fields."""
        return [{"name": f.name, "kind": f.kind, "unit": f.unit, "levels": list(f.vocabulary), "description":
                 f.description} for f in self._scorer.contract.fields]  # fmt: skip

    def _explained(self, case: Case) -> dict[str, Any]:
        contract, scorer = self._scorer.contract, self._scorer
        woman = case.batch(self._pipeline, contract.n_features).to(scorer.device)
        shares = factor_shares(scorer.model, woman, groups=contract.groups, reference_F=contract.reference())
        parts = leave_out(scorer.model, woman)
        return {"factors": None if shares is None else {k: round(v, 5) for k, v in shares.ranked()},
                "adds": {name: parts.effect(name) for name in (*parts.without, *parts.views)}}  # fmt: skip

    def _row(self, asked: PredictionRequest) -> NDArray[np.float32] | None:
        if not asked.clinical:
            return None
        contract = self._scorer.contract
        known = {field.name for field in contract.fields}
        frame = pd.DataFrame([asked.clinical], dtype=object)
        encoded = contract.encode(frame, source="clinical")  # a column that leaks the outcome is refused
        if unknown := sorted(set(asked.clinical) - known):
            raise ValueError(f"clinical: not in the data contract: {', '.join(unknown)[:300]}; GET /v1/contract lists "
                             "what is")  # fmt: skip
        bad = [name for name, count in encoded.report.fields.items() if count.impossible or count.unmapped]
        if bad:
            raise ValueError(f"clinical: not a value of the data contract: {', '.join(bad)}; GET /v1/contract says "
                             "which are")  # fmt: skip
        row: NDArray[np.float32] = encoded.values[0]
        return row if bool(encoded.present[0]) else None

    def _films(self, encoded: list[str]) -> dict[str, Film]:
        found: dict[str, Film] = {}
        owners: set[str] = set()
        if not encoded:
            return found
        with _private_folder() as folder:
            paths = []
            for number, text in enumerate(encoded, start=1):
                path = folder / f"{number}.dcm"
                try:
                    path.write_bytes(base64.b64decode(text, validate=True))
                except binascii.Error:
                    raise ValueError(f"films[{number - 1}] is not base64") from None
                paths.append(path)
            pool = self._pools.get()
            try:
                results = list(pool.run("prepare", paths))
            finally:
                self._pools.put(pool)
        for index, view in results:
            if isinstance(view, ImagingError):
                raise ValueError(f"films[{index}] cannot be used ({view.reason}): {view}")
            assert isinstance(view, View)
            if view.view in found:
                raise ValueError(f"films[{index}]: a second film of {view.view}; send one of each view")
            # float16 is what a cohort holds: the service gives the very scores that `site predict` gives.
            rounded = view.pixels.astype(np.float16).astype(np.float32)
            owners.add(view.patient_id)
            found[view.view] = Film(path=paths[index], received=False, view=replace(view, pixels=rounded))
        if len(owners) > 1:
            raise ValueError("films of different patients in one request")
        return found


def make_app(service: Service, *, token: str | None, hosts: tuple[str, ...] = ()) -> FastAPI:
    """The application.

    token: asked for as `Authorization: Bearer`; None only on loopback. hosts: names under which requests may come,
    beside the loopback's: a web page of another site that resolves its name to this machine is refused.
    """

    @asynccontextmanager
    async def running(_: FastAPI) -> Any:
        with service:
            yield

    app = FastAPI(
        title="MammoFed site", version="1", description=f"Scores of one model, at one site. {DISCLAIMER}",
        docs_url=None, redoc_url=None, lifespan=running,  # their pages load scripts from elsewhere
    )  # fmt: skip

    @app.middleware("http")
    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        host = (request.url.hostname or "").strip("[]")
        if host not in (*LOOPBACK, *hosts):
            return JSONResponse({"detail": "unknown host name"}, status_code=421)
        if token is not None and request.url.path != "/health":
            given = request.headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
                return JSONResponse({"detail": "token missing or wrong"}, status_code=401,
                                    headers={"WWW-Authenticate": "Bearer"})  # fmt: skip
        length = request.headers.get("content-length", "")
        if request.method == "POST" and (not length.isdigit() or int(length) > MAX_BODY_BYTES):
            words = f"state a content-length of at most {MAX_BODY_BYTES} bytes"
            return JSONResponse({"detail": words}, status_code=413)
        return await go_on(request)

    @app.get("/health")
    def health() -> dict[str, str]:
        """Whether it answers."""
        return {"status": "ok"}

    @app.get("/v1/model")
    def model() -> dict[str, Any]:
        """Which model answers, for whom it was measured, and how well it did."""
        return service.model()

    @app.get("/v1/contract")
    def contract() -> list[dict[str, Any]]:
        """Clinical fields that a request may give."""
        return service.contract()

    @app.post("/v1/predictions")
    def predictions(asked: PredictionRequest) -> dict[str, Any]:
        """Score one woman."""
        try:
            return service.answer(asked)
        except (ValueError, MammoFedError) as error:
            raise HTTPException(status_code=422, detail=str(error)) from None

    return app


@contextmanager
def _private_folder() -> Iterator[Path]:
    """A folder in memory where there is one, gone afterwards."""
    memory = Path("/dev/shm")  # noqa: S108  (0700 by mkdtemp)
    base = memory if os.access(memory, os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="mammofed-serve-", dir=base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
