"""A site whose parts are said by name: who is in them, what is refused, and that nobody changes sides afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.deploy.doctor_data import split_pinned
from client.trainer.config import SiteConfig
from client.trainer.models import WarmModels
from client.trainer.roster import rows_by_part, write_roster
from client.trainer.site import Site
from shared_model.cohort import Cohort
from shared_model.doctor.check import Level
from shared_model.errors import ConfigError, PrivacyError


@pytest.fixture
def site(small_study: Callable[..., Any], tmp_path: Path) -> tuple[SiteConfig, Cohort]:
    config = small_study(patients=20).config("site-01")
    cohort = Cohort.open(config.cohort)
    names = list(cohort.pseudonyms)
    write_roster(tmp_path / "roster.json", {"train": names[3:9], "test": [*names[:3], "nobody-of-this-cohort"]})
    return config.model_copy(update={"roster": tmp_path / "roster.json"}), cohort


def test_a_part_is_who_is_named_and_the_others_are_in_none(site: tuple[SiteConfig, Cohort]) -> None:
    config, cohort = site
    rows = rows_by_part(config, cohort)
    assert rows["train"].tolist() == [3, 4, 5, 6, 7, 8] and rows["test"].tolist() == [0, 1, 2]
    opened = Site(SiteConfig.model_validate_json(config.to_json()), WarmModels())
    assert opened.pseudonyms("train") == list(cohort.pseudonyms[3:9])  # what its ledger will charge
    opened.close()


def test_nobody_changes_sides_while_the_state_lives(site: tuple[SiteConfig, Cohort]) -> None:
    config, cohort = site
    Site(config, WarmModels()).close()
    assert split_pinned(config).level is Level.GREEN
    assert config.roster is not None
    write_roster(config.roster, {"train": list(cohort.pseudonyms[:9]), "test": []})
    with pytest.raises(PrivacyError, match="was changed after it was used"):
        Site(config, WarmModels())
    assert split_pinned(config).level is Level.RED
    with pytest.raises(PrivacyError, match="was changed after it was used"):
        Site(config.model_copy(update={"roster": None}), WarmModels())


@pytest.mark.parametrize(("text", "words"), [
    ("[]", "is no roster"), ('{"train": ["a"]}', "is no roster"), ('{"train": ["a"], "test": "b"}', "is no roster"),
    ('{"train": ["a", 1], "test": []}', "is no roster"), ("{", "is no roster"),
    ('{"train": ["a", "b"], "test": ["b"]}', "names a woman twice"), (None, "cannot read the roster"),
])  # fmt: skip
def test_a_bad_roster_is_refused_in_words(
    site: tuple[SiteConfig, Cohort], tmp_path: Path, text: str | None, words: str
) -> None:
    config, cohort = site
    path = tmp_path / "bad.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        rows_by_part(config.model_copy(update={"roster": path}), cohort)
    with pytest.raises(ValueError, match="absolute"):
        SiteConfig.model_validate({**json.loads(config.to_json()), "roster": "bad.json"})
