"""Experiments are scripts beside bench/, not part of the package."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "bench"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
