"""What holds of the encoding whatever a table contains, and on the real tables beside the checkout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared_model.contract import Contract, load_contract
from shared_model.errors import ContractError, LeakageError

CONTRACT = load_contract()
DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["a", "B", "98", "99", "yes", "no", "unknown", "never", "50", "27.5", "-99", "inf"]),
)
TABLES = st.integers(0, 6).flatmap(
    lambda rows: st.dictionaries(
        st.sampled_from([field.name for field in CONTRACT.fields]), st.lists(ANYTHING, min_size=rows, max_size=rows)
    ).map(lambda columns: pd.DataFrame(columns, index=range(rows), dtype=object))
)


@settings(max_examples=150)
@given(TABLES)
def test_any_table_gives_finite_features_of_constant_width(frame: pd.DataFrame) -> None:
    encoded = CONTRACT.encode(frame, source="t.csv")
    assert encoded.values.shape == (len(frame), CONTRACT.n_features)
    assert encoded.values.dtype == np.float32
    assert np.isfinite(encoded.values).all()
    for field in CONTRACT.fields:
        part = encoded.values[:, list(CONTRACT.groups[field.name])]
        counts = encoded.report.fields[field.name]
        assert counts.known + counts.missing + counts.impossible + counts.unmapped == len(frame)
        assert counts.winsorised <= counts.known
        assert (part[part[:, -1] == 1][:, :-1] == 0).all()  # nothing but the flag where the field is not known
        assert set(part[:, -1].tolist()) <= {0.0, 1.0} and int((part[:, -1] == 0).sum()) == counts.known
        if field.kind == "category":
            assert (part.sum(axis=1) == 1).all()  # one-hot, the missing flag being the last level
        if field.kind == "number":
            assert field.winsor is not None
            low, high = ((limit - field.center) / field.scale for limit in field.winsor)
            known = part[(part[:, -1] == 0) & (part[:, 1:-1].sum(axis=1) == 0), 0]
            assert (known >= low - 1e-4).all() and (known <= high + 1e-4).all()


@settings(max_examples=60)
@given(TABLES, st.randoms(use_true_random=False))
def test_a_row_means_the_same_whatever_stands_around_it(frame: pd.DataFrame, random: object) -> None:
    whole = CONTRACT.encode(frame, source="t.csv").values
    columns = list(frame.columns)
    random.shuffle(columns)  # type: ignore[attr-defined]
    shuffled = frame[columns].set_index(pd.Index([f"r{i}" for i in range(len(frame))]))
    assert np.array_equal(whole, CONTRACT.encode(shuffled, source="t.csv").values)
    for row in range(len(frame)):
        assert np.array_equal(whole[row : row + 1], CONTRACT.encode(frame.iloc[[row]], source="t.csv").values)


@settings(max_examples=60)
@given(st.lists(st.one_of(st.none(), st.integers(18, 120), st.floats(18, 120)), max_size=8))
def test_numbers_and_their_text_are_one(values: list[float | None]) -> None:
    numbers = CONTRACT.encode(pd.DataFrame({"age": pd.Series(values, dtype=float)}), source="t.csv").values
    text = pd.DataFrame({"age": ["" if v is None else repr(v) for v in values]}, dtype=object)
    assert np.array_equal(numbers, CONTRACT.encode(text, source="t.csv").values)


def test_two_sites_with_other_columns_get_the_same_layout() -> None:
    one = CONTRACT.encode(pd.DataFrame({"age": [50], "hrt": ["none"]}), source="a")
    two = CONTRACT.encode(pd.DataFrame({"hrt": ["combined", "none"], "age": [50, 50], "site": [1, 2]}), source="b")
    assert np.array_equal(one.values[0], two.values[1])
    assert two.report.ignored_columns == ("site",)


def _real(*parts: str) -> pd.DataFrame:
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"real table {path} is not beside this checkout")
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def test_the_composite_cohort_is_refused_for_the_radiologists_reading() -> None:
    frame = _real("composite_cohort", "composite_cohort.csv")
    with pytest.raises(LeakageError, match="leak_radiologist_birads") as caught:
        CONTRACT.check_columns(list(frame.columns), source="composite_cohort.csv")
    assert "marked as a leak" in str(caught.value)


def test_the_composite_cohort_encodes_once_cleaned() -> None:
    frame = _real("composite_cohort", "composite_cohort.csv")
    kept = frame.rename(
        columns={
            "family_history_first_degree": "first_degree_relatives",
            "birads_density": "breast_density",
            "hrt_current": "hrt",
            "breast_biopsy_history": "prior_biopsies",
        }
    ).drop(columns=["mias_label", "images", "leak_radiologist_birads"])
    with pytest.raises(ContractError, match="`label` is missing"):
        CONTRACT.check_columns(list(kept.columns), source="composite_cohort.csv")
    encoded = CONTRACT.encode(kept, source="composite_cohort.csv")
    assert encoded.present.all()
    bmi = encoded.report.fields["bmi"]
    assert bmi.missing == int((kept["bmi"].astype(float) == -99).sum()) > 0
    for name in ("age", "first_degree_relatives", "breast_density", "hrt", "prior_biopsies"):
        counts = encoded.report.fields[name]
        assert counts.known > 0.8 * len(frame) and counts.unmapped == counts.impossible == 0


@pytest.mark.parametrize(
    "parts",
    [
        ("clinical", "bcsc_digital_mammography", "bcsc_digital_mammography_dev.csv"),
        ("clinical", "cbis_ddsm_case_descriptions", "mass_case_description_train_set.csv"),
        ("clinical", "cbis_ddsm_case_descriptions", "calc_case_description_train_set.csv"),
        ("clinical", "uci_mammographic_masses", "mammographic_masses_dev.csv"),
        ("clinical", "cmmd", "cmmd_clinical.csv"),
        ("clinical", "cdd_cesm", "cdd_cesm_annotations.csv"),
    ],
    ids=lambda parts: parts[1] if isinstance(parts, tuple) else str(parts),
)
def test_every_public_table_is_refused_as_it_comes(parts: tuple[str, ...]) -> None:
    with pytest.raises(LeakageError):
        CONTRACT.check_columns(list(_real(*parts).columns), source=parts[-1])


def test_encoding_a_large_table_reads_each_distinct_cell_once() -> None:
    calls = 0

    class Cell(str):
        def __str__(self) -> str:
            nonlocal calls
            calls += 1
            return str.__str__(self)

    cells = [Cell("50"), Cell("61")] * 5_000
    values = CONTRACT.encode(pd.DataFrame({"age": pd.Series(cells, dtype=object)}), source="t.csv").values
    assert values.shape == (10_000, CONTRACT.n_features)
    assert calls <= 20


def _same(one: Contract, two: Contract) -> bool:
    return one.sha256 == two.sha256 and one.feature_names == two.feature_names


def test_loading_twice_gives_the_same_contract() -> None:
    assert _same(load_contract(), CONTRACT)


def test_what_the_simulated_hospitals_record_is_understood_to_the_last_cell() -> None:
    from simulations.population import clinical

    rng = np.random.default_rng(5)
    women = clinical.draw_risk_factors(rng, 400, age_mean=55.0, density_shift=0.0)
    clinical.draw_labels_and_symptoms(rng, women, intercept=-1.0, lump_rates=(0.4, 0.1))
    table = pd.DataFrame(
        {name: [clinical.recorded(name, float(v)) for v in column] for name, column in women.items()}
    )[[field.name for field in CONTRACT.fields]]
    encoded = CONTRACT.encode(table, source="clinical.csv")
    for counts in encoded.report.fields.values():
        assert counts.known == 400
    assert np.abs(encoded.values).max() <= 5  # public limits bound what the model sees
