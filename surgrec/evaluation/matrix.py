"""Models x splits x probes: features of a pair once, then its probes, each result as soon as it is there.

Pairs are dealt out to ranks, so that no two do the same. Ranks speak twice: rank 0 says what is to be done,
and in the end each says what it did.

    rank 0   plan | pair 0: extract, probe, probe ... | pair 2 ...  | gather | summary
    rank 1        | pair 1: extract, probe, probe ... | pair 3 ...  | gather |
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Protocol

from surgrec.configs.matrix import MatrixConfig
from surgrec.configs.probe import Kind
from surgrec.configs.yaml_io import dump_yaml, to_plain
from surgrec.corpus.record_folder import RecordFolder
from surgrec.curation.ranks import Progress, Ranks, one_rank
from surgrec.curation.records import CurationError
from surgrec.evaluation.extraction import extract
from surgrec.evaluation.matrix_plan import (
    FAILURES,
    Pair,
    check_room,
    extract_config,
    features_of,
    make_plan,
    probe_config,
    reason_of,
    results_of,
)
from surgrec.evaluation.probing import probe
from surgrec.evaluation.results import append_result
from surgrec.loaders.whole_file import replacing
from surgrec.training.errors import UserError


@dataclass(frozen=True)
class Outcome:
    """What became of a cell. result: in words; fault: why there is none."""

    pair: Pair
    kind: Kind
    result: str = ""
    fault: str = ""


class Watch(Protocol):
    """Who is told how a matrix goes on."""

    def plan(self, pairs: list[Pair], needed: int, free: int) -> None:
        """Once, before anything is done: all pairs, and bytes that are needed and left."""

    def extracting(self, pair: Pair) -> AbstractContextManager[Progress]:
        """Where progress of an extraction is shown, in rows."""

    def say(self, text: str) -> None:
        """A line."""


class FeatureFolder(RecordFolder):
    """OUT/features/, which one run at a time fills."""

    def busy(self) -> RuntimeError:
        """What `open` raises while another run has it."""
        return CurationError(
            f"{self.folder}: another run is evaluating into it; wait for it, or choose another --out"
        )


def run_matrix(config: MatrixConfig, threads: int, watch: Watch, ranks: Ranks) -> list[Outcome]:
    """Does what has no result yet; of all ranks, what became of each cell that was to do, on every rank.

    threads: of this machine, its ranks together. A cell that fails does not stop the others. Raises UserError
    for options that make no sense, results that are damaged, a disk without the room, a device that is not
    there; CurationError where another run is at it, or a rank is lost; OSError.
    """
    with ExitStack() as stack:

        def prepare() -> list[Pair]:
            """On rank 0."""
            try:
                if not config.print_only:
                    folder = FeatureFolder(features_of(config)).open()
                    stack.callback(folder.close)
                pairs = make_plan(config, ranks.world.device)
                watch.plan(pairs, *check_room(config, pairs, ranks.world.size))
            except (ValueError, CurationError) as error:
                raise UserError(str(error)) from error
            if not config.print_only:
                with replacing(config.out / "config.yaml") as temporary:
                    temporary.write_text(dump_yaml(to_plain(config)), encoding="utf-8")
            return pairs

        pairs = ranks.agree(prepare)
        if config.print_only:
            return []
        one_rank(config.probe.device)  # heads are trained on the GPU of their rank
        # The largest first, so that shares are of like size.
        todo = sorted((pair for pair in pairs if pair.todo), key=lambda pair: -pair.rows)
        own = max(1, threads // ranks.on_this_machine)
        found = [
            outcome
            for pair in todo[ranks.world.rank :: ranks.world.size]
            for outcome in evaluate_pair(config, pair, own, watch)
        ]
        return [outcome for share in ranks.gather(found) for outcome in share]


def evaluate_pair(config: MatrixConfig, pair: Pair, threads: int, watch: Watch) -> list[Outcome]:
    """Extracts, where there are no features yet, and does the probes that have no result."""
    fault = pair.fault
    if not fault:
        try:
            with watch.extracting(pair) as progress:
                options = extract_config(config, pair.model, pair.manifest, pair.features)
                report = extract(options, threads, progress)
            assert report is not None
            if report.missing:
                path, reason = report.missing[0]
                count = f"{len(report.missing)} of {report.rows} rows are missing"
                watch.say(f"{pair.model} on {pair.dataset}: {count}, the first: {path}: {reason}")
        except FAILURES as error:
            fault = reason_of(error)
            watch.say(f"failed: {pair.model} on {pair.dataset}: {fault}")
    if fault:
        return [Outcome(pair, kind, fault=fault) for kind in pair.todo]
    outcomes = [_evaluate(config, pair, kind, watch.say) for kind in pair.todo]
    if config.drop_features and not any(outcome.fault for outcome in outcomes):
        pair.features.unlink()
    return outcomes


def _evaluate(config: MatrixConfig, pair: Pair, kind: Kind, say: Callable[[str], None]) -> Outcome:
    name = f"{kind} of {pair.model} on {pair.dataset}"
    try:
        result = probe(probe_config(config, pair, kind))
        append_result(results_of(config), result)
    except FAILURES as error:
        fault = reason_of(error)
        say(f"failed: {name}: {fault}")
        return Outcome(pair, kind, fault=fault)
    rows, accuracy = result["rows"]["test"], result["figures"]["accuracy"]["value"]
    text = f"accuracy {100 * accuracy:.1f} %, {rows['read']} of {rows['of']} test rows"
    say(f"{name}: {text}")
    return Outcome(pair, kind, text)
