"""What a file of weights holds, and models of this project in the formats of other tools.

python -m surgrec.convert FILE --report
python -m surgrec.convert RUN --to FORMAT --out PATH
"""

from __future__ import annotations

import sys

import tyro

from surgrec.configs.convert import ConvertConfig


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 if the table is printed or the file written, 1 otherwise, 130 if it was
    interrupted."""
    config = tyro.cli(ConvertConfig, args=arguments, prog="python -m surgrec.convert")
    from surgrec.exports.write import export
    from surgrec.weights.errors import WeightsError
    from surgrec.weights.report import report

    try:
        if config.report == (config.to is not None):
            raise WeightsError("give --report, or --to FORMAT with --out PATH")
        if config.report:
            print(report(config))
            return 0
        checks = export(config, lambda text: print(text, file=sys.stderr))
    except WeightsError as error:
        return _failed(str(error), 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _failed(f"{where}{error.strerror or error}; nothing was written", 1)
    except KeyboardInterrupt:
        return _failed("stopped; nothing was written", 130)
    for check in checks:
        print(f"{check.what}: largest difference {check.difference:.2g} (bound {check.bound:g})")
    print(f"wrote {config.out}")
    return 0


def _failed(message: str, status: int) -> int:
    print(f"surgrec.convert: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
