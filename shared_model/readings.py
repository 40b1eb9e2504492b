"""What radiologists decided at the exam that a model is judged on: attributes of an evaluator's cohort, no model input.

They come in a file of their own (`readings` of site.yaml), never in a clinical table: the data contract refuses columns
of these names there. Subgroups are not made of them, and no message holds one.
"""

from __future__ import annotations

from typing import Final

READER: Final = "radiologist_recall"  # who reads first: yes or no
ARBITER: Final = "radiologist_2_recall"  # another one, of the same films; decides where the first and the model differ
READINGS: Final = (READER, ARBITER)
YES, NO = "yes", "no"
