"""The privacy tests share the small study, model and patients of the site's tests."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("site_fixtures", Path(__file__).parents[1] / "client" / "conftest.py")
assert _spec is not None and _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _module
_spec.loader.exec_module(_module)

patients = _module.patients
memory_patients = _module.memory_patients
tiny_model = _module.tiny_model
small_protocol = _module.small_protocol
one_thread = _module._one_thread
