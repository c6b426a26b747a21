"""`python -m surgrec.benchmark list | check | import | lint | repair | run | table | compare`: data sets,
splits, models, results."""

from __future__ import annotations

import sys
from typing import Any

import tyro

from surgrec.configs.benchmark import (
    CheckConfig,
    Command,
    CompareConfig,
    ImportConfig,
    LintConfig,
    ListConfig,
    RepairConfig,
    TableConfig,
)
from surgrec.configs.matrix import MatrixConfig
from surgrec.configs.yaml_io import ConfigError, from_plain, load_yaml, take_config

PROG = "python -m surgrec.benchmark"
SHOWN_FILES = 5


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 if all was done and nothing is wrong, 1 otherwise, 130 if it was interrupted."""
    try:
        return _run(_parse(sys.argv[1:] if arguments is None else arguments))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _failed(f"{where}{error.strerror or error}; what is written is kept")
    except ValueError as error:
        return _failed(error)
    except KeyboardInterrupt:
        print("surgrec.benchmark: stopped; what is written is kept", file=sys.stderr)
        return 130


def _parse(arguments: list[str]) -> Any:
    """The options of one of the commands. Raises ConfigError for a bad file after `run --config`; SystemExit
    as tyro does."""
    about = "The benchmark's data sets, their splits, evaluation of models on them, and tables of results."
    if arguments[:1] == ["run"]:
        path, rest = take_config(arguments[1:])
        if path is not None:
            try:
                default = from_plain(MatrixConfig, load_yaml(path))
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from error
            return tyro.cli(MatrixConfig, default=default, args=rest, prog=f"{PROG} run --config {path}")
    return tyro.cli(Command, args=arguments, prog=PROG, description=about)


def _run(config: Any) -> int:
    if isinstance(config, ListConfig):
        return _list(config)
    if isinstance(config, CheckConfig):
        return _check(config)
    if isinstance(config, ImportConfig):
        return _import(config)
    if isinstance(config, LintConfig):
        return _lint(config)
    if isinstance(config, RepairConfig):
        return _repair(config)
    if isinstance(config, MatrixConfig):
        return _matrix(config)
    if isinstance(config, CompareConfig):
        return _compare(config)
    return _table(config)


def _failed(error: object) -> int:
    print(f"surgrec.benchmark: {error}", file=sys.stderr)
    return 1


def _list(config: ListConfig) -> int:
    from surgrec.evaluation.registry_report import as_records, in_full, table
    from surgrec.evaluation.registry_table import chosen

    datasets = chosen(config.names)
    if config.json:
        print(as_records(datasets))
    elif config.names:
        print("\n\n".join(in_full(dataset) for dataset in datasets))
    else:
        print(table(datasets))
    return 0


def _check(config: CheckConfig) -> int:
    import json

    from surgrec.curation.readable import readable
    from surgrec.evaluation.data_check import check_clips, find_folders
    from surgrec.evaluation.manifest import read_manifest
    from surgrec.evaluation.registry_table import chosen

    if not config.data_root.is_dir():
        return _failed(f"{config.data_root}: no such folder; name that of the data sets, --data-root DIR")
    if config.threads < 1:
        return _failed(f"--threads is {config.threads}; it is 1 or more")
    if not config.manifests:
        folders = find_folders(chosen(()), config.data_root)
        records: list[dict[str, object]] = [
            {"dataset": found.dataset.key, "there": found.folder is not None, "videos": found.videos}
            for found in folders
        ]
        if config.json:
            print(json.dumps(records, indent=1))
            return 0
        for found in folders:
            there = f"{found.folder}, {found.videos:,} videos" if found.folder else "not there"
            print(f"{found.dataset.name}: {there}")
        print("Give manifests to see whether every clip is there and can be read.")
        return 0
    from tqdm import tqdm

    whole, records = True, []
    for path in config.manifests:
        manifest = read_manifest(path)
        with tqdm(desc=manifest.dataset, unit="file", dynamic_ncols=True, disable=None) as bar:

            def progress(done: int, total: int, bar: tqdm = bar) -> None:
                bar.total = total
                bar.update(done - bar.n)

            found_clips = check_clips(manifest, config.data_root, config.decode, config.threads, progress)
        whole = whole and found_clips.complete
        records.append(
            {
                "dataset": manifest.dataset,
                "digest": manifest.digest,
                "files": found_clips.files,
                "there": found_clips.there,
                "missing": list(found_clips.missing),
                "faults": dict(found_clips.faults),
            }
        )
        if config.json:
            continue
        print(
            f"{manifest.dataset}: {found_clips.there:,} of {found_clips.files:,} files are there,"
            f" {len(found_clips.faults):,} of them cannot be used"
        )
        lines = [f"missing: {file}" for file in found_clips.missing[:SHOWN_FILES]]
        lines += [f"{file}: {fault}" for file, fault in found_clips.faults[:SHOWN_FILES]]
        print("".join(f"  {readable(line)}\n" for line in lines), end="")
    if config.json:
        print(json.dumps(records, indent=1))
    return 0 if whole else 1


def _import(config: ImportConfig) -> int:
    from surgrec.curation.readable import readable
    from surgrec.evaluation.manifest import write_manifest
    from surgrec.evaluation.published_splits import SplitError, import_split, split_folders, split_sizes

    failures, written = 0, set()
    for folder in split_folders(config.splits):
        try:
            manifest = import_split(folder, config.data_root, config.strict_groups)
        except SplitError as error:
            failures += _failed(error)
            continue
        out = config.out / f"{manifest.dataset}.json"
        if out in written:
            failures += _failed(f"{folder}: {out} is of another folder of this data set; import it by itself")
            continue
        written.add(out)
        write_manifest(out, manifest)
        sizes = "/".join(f"{count:,}" for count in split_sizes(manifest).values())
        print(f"{out}: {sizes} rows train/val/test, digest {manifest.digest}")
        for rule in manifest.rules:
            print(f"  {readable(rule)}")
    return 1 if failures else 0


def _lint(config: LintConfig) -> int:
    from surgrec.evaluation.findings import LintOptions
    from surgrec.evaluation.lint import as_json, as_record, as_text, has_errors, lint
    from surgrec.evaluation.manifest import ManifestError, read_manifest

    options = LintOptions(config.difference, config.examples, config.covered, config.gap_seconds)
    faulty, records = False, []
    for path in config.manifests:
        try:
            manifest = read_manifest(path)
        except ManifestError as error:
            faulty = bool(_failed(error))
            continue
        findings = lint(manifest, options)
        faulty = faulty or has_errors(findings)
        records.append(as_record(manifest, findings))
        if not config.json:
            print(as_text(manifest, findings))
    if config.json:
        print(as_json(records))
    return 1 if faulty else 0


def _repair(config: RepairConfig) -> int:
    from surgrec.curation.readable import readable
    from surgrec.evaluation.manifest import ManifestError, read_manifest, write_manifest
    from surgrec.evaluation.published_splits import split_sizes
    from surgrec.evaluation.repair import RepairError, repair

    failures, written = 0, set()
    for path in config.manifests:
        out = (config.out or path.parent) / f"{path.stem}.repaired.json"
        if out in written:
            failures += _failed(f"{path}: {out} is of another manifest of this name; give another --out")
            continue
        try:
            repaired = repair(
                read_manifest(path), config.parts, config.seed, config.drop_classes, config.drop_covered
            )
        except RepairError as error:
            failures += _failed(f"{path}: {error}")
            continue
        except ManifestError as error:
            failures += _failed(error)
            continue
        manifest = repaired.manifest
        written.add(out)
        write_manifest(out, manifest)
        sizes = "/".join(f"{count:,}" for count in split_sizes(manifest).values())
        print(f"{out}: {sizes} rows train/val/test, digest {manifest.digest}")
        for rule in manifest.rules:
            print(f"  {readable(rule)}")
    return 1 if failures else 0


def _matrix(config: MatrixConfig) -> int:
    from surgrec.curation.ranks import start_ranks
    from surgrec.curation.records import CurationError
    from surgrec.evaluation.matrix import run_matrix
    from surgrec.evaluation.matrix_report import Console
    from surgrec.loaders.engines.cpu import count_threads
    from surgrec.training.errors import UserError

    try:
        with start_ranks(config.extract.device) as ranks:
            console = Console(config, ranks.world.first)
            outcomes = run_matrix(config, count_threads(config.extract.workers), console, ranks)
            if ranks.world.first and not config.print_only:
                console.summary(outcomes)
    except (CurationError, UserError) as error:
        return _failed(error)
    except KeyboardInterrupt:
        print("surgrec.benchmark: stopped; the same command goes on where it was", file=sys.stderr)
        return 130
    return 1 if any(outcome.fault for outcome in outcomes) else 0


def _table(config: TableConfig) -> int:
    from surgrec.evaluation.results import read_results
    from surgrec.evaluation.table import render
    from surgrec.loaders.whole_file import replacing

    results = [result for path in config.results for result in read_results(path)]
    if not results:
        return _failed(f"no results in {', '.join(map(str, config.results))}; evaluate a model first")
    text = render(results, config.form)
    if config.out is None:
        print(text)
        return 0
    with replacing(config.out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"{config.out}: {len(results)} results")
    return 0


def _compare(config: CompareConfig) -> int:
    from surgrec.evaluation.comparison import Side, compare
    from surgrec.evaluation.comparison_text import render, warnings_of
    from surgrec.evaluation.manifest import read_manifest
    from surgrec.evaluation.results import read_results
    from surgrec.loaders.whole_file import replacing

    if config.resamples < 1:
        return _failed(f"--resamples is {config.resamples}; it is at least 1")
    if len(config.modes) > 2:
        return _failed(f"--modes are {' '.join(config.modes)}; give one for both models, or one for each")
    modes = (*config.modes, *config.modes, None, None)
    first, second = Side(config.models[0], modes[0]), Side(config.models[1], modes[1])
    if first == second:
        return _failed(f"{first.model} is compared with itself; name two models, or two --modes of it")
    results = [result for path in config.results for result in read_results(path)]
    manifests = [read_manifest(path) for path in config.manifests]
    found = compare(results, manifests, (first, second), config.seed, config.resamples)
    for warning in warnings_of(found):
        print(f"surgrec.benchmark: {warning}", file=sys.stderr)
    text = render(found, config.form)
    if config.out is None:
        print(text)
        return 0
    with replacing(config.out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"{config.out}: {len(found.sets)} data sets")
    return 0


if __name__ == "__main__":
    sys.exit(main())
