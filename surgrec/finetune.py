"""Fine-tune a pretrained network on a split, straight from its videos.

python -m surgrec.finetune --manifest M.json --data-root DIR --model ckpt:RUN [--mode full|head|lora ...]
python -m surgrec.finetune --config RUN/config.yaml [--out runs/y ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

import tyro

from surgrec.configs.finetune import FinetuneConfig, from_document
from surgrec.configs.yaml_io import ConfigError, load_yaml

PROG = "python -m surgrec.finetune"


def parse(arguments: list[str]) -> FinetuneConfig:
    """The configuration that a command line stands for.

    Raises ConfigError for a bad configuration file; SystemExit 2 for a bad command line, 0 after --help.
    """
    if not arguments or not (arguments[0] == "--config" or arguments[0].startswith("--config=")):
        if any(argument == "--config" or argument.startswith("--config=") for argument in arguments):
            raise ConfigError("--config comes first")
        return tyro.cli(FinetuneConfig, args=arguments, prog=PROG)
    _, equals, name = arguments[0].partition("=")
    rest = arguments[1:]
    if not equals:
        if not rest:
            raise ConfigError("--config needs the path of a config.yaml")
        name, rest = rest[0], rest[1:]
    document = load_yaml(Path(name))
    try:
        config = from_document(document)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    return tyro.cli(FinetuneConfig, default=config, args=rest, prog=f"{PROG} --config {name}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 if the result is written, 2 for a bad configuration file, 130 if it was interrupted,
    1 for anything else."""
    try:
        config = parse(sys.argv[1:] if arguments is None else arguments)
    except ConfigError as error:
        return _failed(str(error), 2)
    import torch
    from tqdm import tqdm

    from surgrec.corpus.build import BuildError
    from surgrec.corpus.journal import JournalBusyError
    from surgrec.curation.records import CurationError
    from surgrec.evaluation.result_text import print_result
    from surgrec.finetuning.session import Progress, finetune
    from surgrec.loaders.engines.cpu import count_threads
    from surgrec.loaders.failure_watch import ClipLoaderError
    from surgrec.training.errors import UserError

    try:
        with tqdm(desc="fine-tune", unit="step", dynamic_ncols=True, disable=None) as bar:

            def step(done: int, total: int, loss: float) -> None:
                bar.total = total
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                bar.update(done - bar.n)

            say = Progress(lambda text: bar.write(text, file=sys.stderr), step)
            finished = finetune(config, count_threads(config.workers), say)
    except (ValueError, UserError, CurationError, BuildError, JournalBusyError, ClipLoaderError) as error:
        return _failed(str(error), 1)
    except torch.OutOfMemoryError:
        return _failed(
            f"the GPU has no memory left for {config.batch} clips at a time; give a smaller --batch and"
            " another --out",
            1,
        )
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _failed(
            f"{where}{error.strerror or error}; epochs that are finished are kept, and the same command"
            " goes on from there",
            1,
        )
    except KeyboardInterrupt:
        return _failed("stopped; with its --out, the same command goes on after the last finished epoch", 130)
    if finished.reused:
        print(f"{finished.run.path} holds this result already; give another --out to train again")
    print_result(finished.result)
    print(f"appended to {config.results}; the network is {finished.run.network}")
    return 0


def _failed(message: str, status: int) -> int:
    print(f"surgrec.finetune: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
