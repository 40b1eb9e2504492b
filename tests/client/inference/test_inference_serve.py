"""The HTTP service: the same scores, who may ask, what is refused, and that nothing stays behind."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient

from client.cli import site as site_commands
from client.inference.listen import read_token
from client.inference.predict import Prediction
from client.inference.scorer import Scorer
from client.inference.serve import Service, make_app
from shared_model.errors import ConfigError
from tests.client.inference.conftest import Hospital

TOKEN = "a-secret-of-many-letters"


@pytest.fixture(scope="module")
def client(hospital: Hospital, scorer: Scorer) -> Iterator[TestClient]:
    app = make_app(Service(hospital.site, scorer, None, workers=1), token=None)
    with TestClient(app, base_url="http://127.0.0.1") as running:
        yield running


@pytest.fixture(scope="module")
def images(predictions: list[Prediction]) -> Prediction:
    return next(p for p in predictions if p.case.modalities in ("both", "image") and len(p.case.films) == 4)


def encoded(paths: list[Path]) -> list[str]:
    return [base64.b64encode(path.read_bytes()).decode() for path in paths]


def test_films_alone_give_what_predict_gives(client: TestClient, images: Prediction, scorer: Scorer) -> None:
    films = encoded([film.path for film in images.case.films.values()])
    answer = client.post("/v1/predictions", json={"films": films, "explain": True})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["image_logit"] == pytest.approx(images.score.image_logit, abs=1e-5)
    assert found["modalities"] == "image" and found["clinical_logit"] is None
    assert found["model_sha256"] == scorer.released.release.model_sha256
    assert "patient_id" not in found and "SYNTH" not in answer.text
    assert found["adds"]["image"] is None and set(found["adds"]) >= {"L_CC", "R_MLO"}


def test_the_table_alone_is_scored(client: TestClient) -> None:
    found = client.post("/v1/predictions", json={"clinical": {"age": 61, "breast_density": "d", "hrt": None}}).json()
    assert found["modalities"] == "table" and found["image_logit"] is None


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "neither a film"),
        ({"clinical": {"birads": 4}}, "refused"),
        ({"clinical": {"shoe_size": 40}}, "not in the data contract"),
        ({"clinical": {"age": 400}}, "age"),
        ({"films": ["!"]}, "base64"),
        ({"films": ["AAAA"]}, "not_dicom"),
    ],
)
def test_what_cannot_be_scored_is_refused_in_words(client: TestClient, asked: dict[str, object], words: str) -> None:
    answer = client.post("/v1/predictions", json=asked)
    assert answer.status_code == 422 and words in answer.text


def test_two_films_of_a_view_and_two_women_are_refused(
    client: TestClient, images: Prediction, predictions: list[Prediction]
) -> None:
    one = images.case.films["L_CC"].path
    assert "second film" in client.post("/v1/predictions", json={"films": encoded([one, one])}).text
    other = next(p for p in predictions if p is not images and "R_CC" in p.case.films).case.films["R_CC"].path
    assert "different patients" in client.post("/v1/predictions", json={"films": encoded([one, other])}).text


def test_unknown_fields_of_a_request_are_refused(client: TestClient) -> None:
    assert client.post("/v1/predictions", json={"film": []}).status_code == 422


def test_a_foreign_host_name_is_refused(client: TestClient) -> None:
    assert client.get("/v1/model", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/v1/model", headers={"host": "localhost"}).status_code == 200


def test_the_documents(client: TestClient, scorer: Scorer) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/v1/model").json()["model_sha256"] == scorer.released.release.model_sha256
    assert {field["name"] for field in client.get("/v1/contract").json()} == {f.name for f in scorer.contract.fields}
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/health", "/v1/model", "/v1/contract", "/v1/predictions"}
    assert client.get("/docs").status_code == 404


def test_no_film_stays_behind(client: TestClient, images: Prediction, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of this request's own folders: other processes may be answering theirs in the same place."""
    made, make = list[str](), tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **where: made.append(make(**where)) or made[-1])
    client.post("/v1/predictions", json={"films": encoded([images.case.films["L_CC"].path])})
    assert made and not any(Path(folder).exists() for folder in made)
    assert all(Path(folder).name.startswith("mammofed-serve-") for folder in made)


def test_a_token_is_asked_for(hospital: Hospital, scorer: Scorer) -> None:
    app = make_app(Service(hospital.site, scorer, None, workers=1), token=TOKEN, hosts=("mammo.example",))
    with TestClient(app, base_url="http://mammo.example") as running:
        assert running.get("/health").status_code == 200
        assert running.get("/v1/model").status_code == 401
        assert running.get("/v1/model", headers={"authorization": "Bearer wrong"}).status_code == 401
        assert running.get("/v1/model", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
        assert running.post("/v1/predictions", content=b"x", headers={"authorization": f"Bearer {TOKEN}",
                            "content-length": str(1 << 40)}).status_code == 413  # fmt: skip


def test_beyond_loopback_without_a_token_it_does_not_start(hospital: Hospital, model_folder: Path) -> None:
    done = CliRunner().invoke(site_commands, ["serve", str(hospital.site_yaml), "--model", str(model_folder), "--host",
                                              "0.0.0.0"])  # fmt: skip
    assert isinstance(done.exception, ConfigError) and "token" in str(done.exception)


def test_a_token_that_others_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="others"):
        read_token(path)
    path.chmod(0o600)
    assert read_token(path) == TOKEN
    path.write_text("short")
    with pytest.raises(ConfigError, match="no token"):
        read_token(path)
