"""The four published splits whose metadata may be passed on: what was counted in them by other means.

They are no part of the project: SURGREC_PUBLISHED_SPLITS names the folder that they lie in, and without it
these tests are skipped.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from surgrec.evaluation.lint import as_record, lint
from surgrec.evaluation.lint_leaks import PAIRS, same_sets
from surgrec.evaluation.published_splits import import_split
from surgrec.evaluation.repair import repair

SPLITS = Path(os.environ.get("SURGREC_PUBLISHED_SPLITS", ""))

COUNTED: dict[str, dict[str, Any]] = {
    "cataract-1k-phase": {"rows": (651, 178, 101), "majority": 10.9},
    "Colonoscopic-web": {
        "rows": (106, 31, 15),
        "groups": 12,
        "covered": 12,
        "majority": 53.3,
        "lookup_of_covered": 100.0,
    },
    "hyper-kvasir": {
        "rows": (653, 654, 654),
        "val_is_test": True,
        "groups": 93,
        "covered": 640,
        "majority": 25.2,
        "lookup_of_covered": 100.0,
    },
    "kvasir-capsule": {
        "rows": (329, 82, 82),
        "val_is_test": True,
        "groups": 18,
        "covered": 81,
        "majority": 34.1,
        "lookup": 87.8,
    },
}
REPAIRED = {
    "cataract-1k-phase": "8377a9a3520377ed249d2498c884d9c0",
    "Colonoscopic-web": "571ea5a7d95abdf7964df524f4f43b82",
    "hyper-kvasir": "0af5c3d720c43d49ef5521dfcfbc7d73",
    "kvasir-capsule": "bd2a76aee9e057395029ccd047c198bc",
}

pytestmark = pytest.mark.skipif(
    "SURGREC_PUBLISHED_SPLITS" not in os.environ, reason="SURGREC_PUBLISHED_SPLITS names no folder"
)


@pytest.mark.parametrize("folder", COUNTED)
def test_the_linter_counts_what_was_counted(folder: str, tmp_path: Path) -> None:
    manifest = import_split(SPLITS / folder, tmp_path)
    record, wanted = as_record(manifest, lint(manifest)), COUNTED[folder]
    found = {finding["code"]: finding["figures"] for finding in record["findings"]}
    assert tuple(record["rows"].values()) == wanted["rows"]
    assert ("val-is-test" in found) == wanted.get("val_is_test", False)
    assert round(100 * found["majority"]["accuracy"], 1) == wanted["majority"]
    leak = found.get("groups-in-train-and-test", {"groups": 0, "rows": 0})
    assert (leak["groups"], leak["rows"]) == (wanted.get("groups", 0), wanted.get("covered", 0))
    assert ("groups-disjoint" in found) == ("groups" not in wanted)
    lookup = found.get("source-lookup", {})
    for name, figure in (("lookup", "accuracy"), ("lookup_of_covered", "accuracy_of_covered")):
        if name in wanted:
            assert round(100 * lookup[figure], 1) == wanted[name]


@pytest.mark.parametrize("folder", COUNTED)
def test_repaired_splits_share_no_group_and_have_one_digest(folder: str, tmp_path: Path) -> None:
    made = repair(import_split(SPLITS / folder, tmp_path)).manifest
    groups = [{row.group for row in made.of(split)} for split in ("train", "val", "test")]
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert not [pair for pair in PAIRS if pair in same_sets(made)]
    assert made.digest == REPAIRED[folder]
