"""The data contract: what each column of a hospital's clinical table means and how it becomes model input."""

from shared_model.contract.contract import Contract, load_contract
from shared_model.contract.encoding import Encoded, EncodingReport, FieldCounts
from shared_model.contract.schema import CLINICAL_COLUMNS, ClinicalField, DenyRule

__all__ = [
    "CLINICAL_COLUMNS",
    "ClinicalField",
    "Contract",
    "DenyRule",
    "Encoded",
    "EncodingReport",
    "FieldCounts",
    "load_contract",
]
