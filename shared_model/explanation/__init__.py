"""Why the model says what it says of one woman: heat maps on her films, shares of her clinical factors; needs torch.

Attention weights (of cells, of views, the gate) are never offered as an explanation: measured against known lesions
they pointed worse than chance. The gate is shown as what it is, beside the effect of leaving a modality out.
"""

from shared_model.explanation.ablation import Ablation, leave_out
from shared_model.explanation.localisation import Localisation, localise
from shared_model.explanation.maps import DEFAULT_METHOD, METHODS, Method, Target, heat_maps
from shared_model.explanation.shapley import FactorShares, factor_shares

__all__ = [
    "DEFAULT_METHOD", "METHODS", "Ablation", "FactorShares", "Localisation", "Method", "Target", "factor_shares",
    "heat_maps", "leave_out", "localise",
]  # fmt: skip
