"""Pretrain a video transformer on an indexed corpus.

python -m surgrec.pretrain PRESET [--data.index corpus.h5 --steps 20 --out runs/x ...]
python -m surgrec.pretrain --config RUN/config.yaml [--out runs/y ...]
"""

from __future__ import annotations

import errno
import os
import sys

from surgrec.configs.presets import PRESETS
from surgrec.configs.pretrain import PretrainConfig, from_document, to_document
from surgrec.configs.yaml_io import ConfigError, dump_yaml, load_yaml, take_config

PROG = "python -m surgrec.pretrain"
ABOUT = (
    "Pretrain a video transformer on an indexed corpus: PRESET [options], or --config RUN/config.yaml "
    "[options] to repeat a run. `PRESET --help` lists the options; every value of a preset can be overridden."
)
# Failures of writing that a message explains better than a traceback.
STORAGE_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
}


def parse(arguments: list[str]) -> PretrainConfig:
    """The configuration that a command line stands for.

    Raises ConfigError for a bad configuration file; SystemExit 2 for a bad command line, 0 after --help.
    """
    import tyro

    path, rest = take_config(arguments)
    if path is not None:
        document = load_yaml(path)
        try:
            config = from_document(document)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        return tyro.cli(
            type(config), default=config, args=rest, prog=f"{PROG} --config {path}", description=ABOUT
        )
    chosen = tyro.extras.subcommand_type_from_defaults(
        {name: config for name, (_, config) in PRESETS.items()},
        {name: about for name, (about, _) in PRESETS.items()},
    )
    parsed: PretrainConfig = tyro.cli(chosen, args=arguments, prog=PROG, description=ABOUT)
    return parsed


def print_plan(config: PretrainConfig) -> None:
    """The resolved configuration as YAML, and what it will cost as comments below it."""
    import torch

    from surgrec.training.estimate import describe, estimate
    from surgrec.training.resolve import batch_shape, choose_precision
    from surgrec.training.values import check_values

    check_values(config)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    shape = batch_shape(config, ranks)
    gpu = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if gpu else "cpu")
    precision = choose_precision(config, device)
    costs = estimate(config, shape.micro_batch, precision, ranks, device.type)
    print(dump_yaml(to_document(config)), end="")
    print(f"# micro-batch {shape.micro_batch}, accumulation {shape.accumulation}, {precision}")
    for line in describe(config, costs, shape.micro_batch).splitlines():
        print(f"# {line}")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status. docs/pretraining.md lists them."""
    try:
        config = parse(sys.argv[1:] if arguments is None else arguments)
    except ConfigError as error:
        return _fail(str(error), 2)

    # torch takes seconds to import: not before the command line is known to be good.
    import torch

    from surgrec.training.errors import UserError

    try:
        if config.dry_run:
            print_plan(config)
            return 0
        from surgrec.training.session import pretrain

        return pretrain(config)
    except UserError as error:
        return _fail(str(error), 1)
    except torch.OutOfMemoryError as error:
        return _fail(f"{error}\nGive a smaller --micro-batch, or --model.checkpoint-activations.", 1)
    except OSError as error:
        if error.errno not in STORAGE_ERRORS:
            raise
        where = f" {error.filename}" if error.filename else ""
        return _fail(f"cannot write{where}: {error.strerror}. Make room, or give another --out.", 1)
    except KeyboardInterrupt:
        return _fail("aborted; checkpoints written so far are whole", 130)


def _fail(message: str, status: int) -> int:
    print(f"surgrec.pretrain: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
