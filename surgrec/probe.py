"""`python -m surgrec.probe F.h5 --manifest M.json --kind attentive`: what frozen features can do."""

from __future__ import annotations

import sys

import tyro

from surgrec.configs.probe import ProbeConfig


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 if the result is written, 1 otherwise, 130 if it was interrupted."""
    config = tyro.cli(ProbeConfig, args=arguments, prog="python -m surgrec.probe")
    import torch

    from surgrec.evaluation.probing import probe
    from surgrec.evaluation.result_text import print_result
    from surgrec.evaluation.results import append_result

    try:
        result = probe(config, lambda text: print(text, file=sys.stderr))
        print_result(result)  # first: a disk that is full must not take it away
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
    print(f"appended to {config.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
