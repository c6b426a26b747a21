"""The linter of splits: all that is wrong with a manifest, counted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Final

from surgrec.curation.readable import readable
from surgrec.evaluation.clip_spans import place
from surgrec.evaluation.findings import Finding, LintOptions
from surgrec.evaluation.lint_labels import covered_clips, label_faults
from surgrec.evaluation.lint_leaks import leaks, repeats
from surgrec.evaluation.lint_size import size_faults, without_looking
from surgrec.evaluation.manifest import SPLITS, SplitManifest

_ORDER: Final = {"error": 0, "warning": 1, "info": 2}


def lint(manifest: SplitManifest, options: LintOptions | None = None) -> list[Finding]:
    """All findings, errors first. Raises ValueError for options that make no sense."""
    options = options or LintOptions()
    if not 0 < options.difference < 1:
        raise ValueError(f"--difference is {options.difference:g}; it lies between 0 and 1, 0.05 is 5 points")
    if not 0 < options.covered <= 1:
        raise ValueError(f"--covered is {options.covered:g}; it is a share above 0, of 1 at most")
    if options.examples < 0 or not options.gap_seconds >= 0:
        raise ValueError("--examples and --gap-seconds are 0 or more")
    sources = place(manifest, options.gap_seconds)
    found = [
        *leaks(manifest, sources, options),
        *repeats(manifest, options),
        *label_faults(manifest, options),
        *covered_clips(sources, options),
        *size_faults(manifest, options),
        *without_looking(manifest),
    ]
    return sorted(found, key=lambda finding: _ORDER[finding.severity])


def has_errors(findings: Iterable[Finding]) -> bool:
    """Whether any of them is an error."""
    return any(finding.severity == "error" for finding in findings)


def as_text(manifest: SplitManifest, findings: Sequence[Finding]) -> str:
    """A report to read: a line a finding, and its rows below. What does not print is spelled out: names come
    from strangers."""
    sizes = "/".join(f"{len(manifest.of(split)):,}" for split in SPLITS)
    counts = [sum(finding.severity == name for finding in findings) for name in ("error", "warning")]
    lines = [
        f"{manifest.dataset}: {sizes} rows train/val/test, {len(manifest.classes)} classes,"
        f" {len({row.group for row in manifest.rows}):,} groups, digest {manifest.digest}",
        f"  {counts[0]} errors, {counts[1]} warnings",
    ]
    for finding in findings:
        lines.append(f"  {finding.severity:7} {finding.code}: {finding.text}")
        lines += [f"            {row}" for row in finding.rows]
    return "\n".join(readable(line) for line in lines)


def as_record(manifest: SplitManifest, findings: Sequence[Finding]) -> dict[str, Any]:
    """The same as plain values, for JSON."""
    return {
        "dataset": manifest.dataset,
        "digest": manifest.digest,
        "rows": {split: len(manifest.of(split)) for split in SPLITS},
        "errors": sum(finding.severity == "error" for finding in findings),
        "warnings": sum(finding.severity == "warning" for finding in findings),
        "findings": [asdict(finding) | {"figures": dict(finding.figures)} for finding in findings],
    }


def as_json(records: Sequence[dict[str, Any]]) -> str:
    """A JSON list of `as_record`s."""
    return json.dumps(records, indent=1)
