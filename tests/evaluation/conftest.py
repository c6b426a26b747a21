"""Generated splits, shared by the tests of the linter and of repairs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# Test modules have no package (import-mode importlib), and so no neighbours that they could import.
_PATH = Path(__file__).with_name("generated.py")
_SPEC = importlib.util.spec_from_file_location("surgrec_test_generated", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
_MODULE = importlib.util.module_from_spec(_SPEC)
sys.modules["surgrec_test_generated"] = _MODULE
_SPEC.loader.exec_module(_MODULE)
