"""`python -m surgrec.probe F.h5 --manifest M.json --kind attentive`: what frozen features can do."""

from __future__ import annotations

import sys
from typing import Any

import tyro

from surgrec.configs.probe import ProbeConfig

SHOWN = 5


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 if the result is written, 1 otherwise, 130 if it was interrupted."""
    config = tyro.cli(ProbeConfig, args=arguments, prog="python -m surgrec.probe")
    import torch

    from surgrec.evaluation.probing import probe
    from surgrec.evaluation.results import append_result

    try:
        result = probe(config, lambda text: print(text, file=sys.stderr))
        append_result(config.out, result)
    except ValueError as error:  # ManifestError and FeatureError are ones
        print(f"surgrec.probe: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError:
        print(
            f"surgrec.probe: the GPU has no memory left for {config.batch} samples of all heads; give"
            " a smaller --batch, fewer --lrs, or --precision bfloat16",
            file=sys.stderr,
        )
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"surgrec.probe: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("surgrec.probe: stopped; nothing was written", file=sys.stderr)
        return 130
    _print(result)
    print(f"appended to {config.out}")
    return 0


def _print(result: dict[str, Any]) -> None:
    rows = result["rows"]["test"]
    print(
        f"{result['dataset']} (split {result['manifest_digest'][:8]}), {result['mode']} of {result['model']}"
    )
    print(
        f"test: {rows['read']} of {rows['of']} rows, {result['test_groups']} groups; chosen on val:"
        f" {', '.join(f'{name} {value:g}' for name, value in result['chosen'].items())}"
    )
    for split, path, reason in result["missing"][:SHOWN]:
        print(f"missing, {split}: {path}: {reason}", file=sys.stderr)
    if len(result["missing"]) > SHOWN:
        print(f"and {len(result['missing']) - SHOWN} missing rows more", file=sys.stderr)
    for split, names in result["classes_missing"].items():
        if names:
            print(f"classes that {split} lacks: {', '.join(names)}", file=sys.stderr)
    for name, figure in result["figures"].items():
        print(f"  {name:20} {_figure(figure)}")
    for name, figures in result["baselines"].items():
        print(f"  {name + ' baseline':20} accuracy {_figure(figures['accuracy'])}")
    for entry in result.get("few_shot", []):
        accuracy = entry["accuracy"]
        spread = "" if accuracy["deviation"] is None else f" +- {100 * accuracy['deviation']:.1f}"
        print(f"  {entry['shots']} shots: accuracy {100 * accuracy['mean']:.1f}{spread} %")


def _figure(figure: dict[str, Any]) -> str:
    bounds = "" if figure["low"] is None else f"  [{100 * figure['low']:.1f}, {100 * figure['high']:.1f}]"
    return f"{100 * figure['value']:5.1f} %{bounds}"


if __name__ == "__main__":
    sys.exit(main())
