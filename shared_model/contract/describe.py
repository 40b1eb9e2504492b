"""Writes the table of fields in this folder's README from the contract; run it after every change of the contract.

python -m shared_model.contract.describe
"""

from __future__ import annotations

from pathlib import Path

from shared_model.contract.contract import Contract, load_contract
from shared_model.contract.schema import ClinicalField

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- fields: written by describe.py -->", "<!-- end of fields -->"


def markdown_table(contract: Contract) -> str:
    """The fields as a Markdown table, one row a field in the order of the features."""
    head = "| field | meaning | values | model sees | codes |\n|---|---|---|---|---|\n"
    rows = [f"| `{f.name}` | {f.description} | {_values(f)} | {_scaling(f)} | {_codes(f)} |" for f in contract.fields]
    sizes = f"{len(contract.fields)} fields, {contract.n_features} features"
    return head + "\n".join(rows) + f"\n\n{sizes}, version {contract.version}, hash `{contract.sha256}`."


def _values(field: ClinicalField) -> str:
    if field.kind == "flag":
        return "no, yes"
    words = ", ".join(f"`{level}`" for level in field.levels)
    if field.range is None:
        return words
    number = f"{field.range[0]:g} to {field.range[1]:g} {field.unit}" + (", whole" if field.whole else "")
    return f"{number}, or {words}" if words else number


def _scaling(field: ClinicalField) -> str:
    missing = "missing flag"
    if field.kind == "flag":
        return f"1 for yes, {missing}"
    if field.winsor is None:
        return f"one column a level, {missing}"
    low, high = field.winsor
    shift = f"value - {field.center:g}" if field.center else "value"
    scaled = (f"({shift})" if field.center else shift) + f" / {field.scale:g}" if field.scale != 1 else shift
    value = f"{scaled} within {low:g} to {high:g}"
    return ", ".join([value, *(f"1 for {level}" for level in field.levels), missing])


def _codes(field: ClinicalField) -> str:
    parts = [f"FHIR {field.codes.fhir}"] if field.codes.fhir else []
    parts += [f"LOINC {code}" for code in field.codes.loinc]
    parts += [f"SNOMED CT {code}" for code in field.codes.snomed]
    parts += [f"`{level}` SNOMED CT {code}" for level, code in field.level_codes.items()]
    return "; ".join(parts)


def refresh(text: str, contract: Contract) -> str:
    """The README with the present table between its marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{markdown_table(contract)}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(refresh(README.read_text(encoding="utf-8"), load_contract()), encoding="utf-8")
