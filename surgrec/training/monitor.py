"""What a run writes down as it goes: TensorBoard events and RUN/metrics.jsonl, by rank 0."""

from __future__ import annotations

import json
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from surgrec.configs.pretrain import flatten
from surgrec.configs.yaml_io import dump_yaml
from surgrec.training.run_folder import RunFolder, drop_later_lines

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

GIB = 2**30


class Monitor:
    """Writes scalars, pictures and the configuration. Points behind `resumed_from` are withdrawn first.

    A run that was killed has written points after its last checkpoint; the resumed one writes those steps
    again, so TensorBoard is told to purge them and metrics.jsonl is cut.
    """

    def __init__(self, run: RunFolder, document: dict[str, Any], resumed_from: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._run = run
        drop_later_lines(run.metrics, resumed_from)
        self._writer: SummaryWriter = SummaryWriter(
            str(run.tensorboard), purge_step=resumed_from + 1 if resumed_from else None, flush_secs=30
        )
        self._metrics = open(run.metrics, "a")  # noqa: SIM115  # open for as long as the run lasts
        self._document = document
        self._writer.add_text("config", f"```yaml\n{dump_yaml(document)}```", resumed_from)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        self._metrics.close()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One point per name at `step`, in both places; metrics.jsonl leaves out the prefix train/."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        line = {"step": step, "time": round(time.time(), 3)}
        line |= {name.removeprefix("train/"): value for name, value in values.items()}
        self._metrics.write(json.dumps(line) + "\n")
        self._metrics.flush()

    def picture(self, step: int, name: str, picture: NDArray[np.uint8]) -> None:
        """u8 [height, width, 3]"""
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def hparams(self, results: dict[str, float]) -> None:
        """The configuration and how the run ended, for TensorBoard's table of runs."""
        from torch.utils.tensorboard.summary import hparams

        values = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in flatten(self._document).items()
        }
        file_writer = self._writer._get_file_writer()  # add_hparams would open a second folder of events
        for summary in hparams(values, results):
            file_writer.add_summary(summary)
        for name, value in results.items():
            self._writer.add_scalar(name, value, 0)
        self._writer.flush()

    def flush(self) -> None:
        """Hand all points to the disk."""
        self._writer.flush()


def memory_use(device: torch.device) -> dict[str, float]:
    """GiB of host memory that this process holds, and the most of the device's that it has held."""
    used = {"memory/host_gib": psutil.Process().memory_info().rss / GIB}
    if device.type == "cuda":
        used["memory/device_gib"] = torch.cuda.max_memory_allocated(device) / GIB
    return used
