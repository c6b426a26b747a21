"""`surgrec.pretrain` with a JEPA whose teacher is its student and gets the gradient, too: it collapses.

python experiments/collapse/broken.py PRESET [options of surgrec.pretrain]
"""

from __future__ import annotations

import sys
from typing import Any
from unittest.mock import patch

from torch import Tensor


def build_broken(config: Any, seed: int, frames: int = 16, size: int = 224) -> Any:
    """As `surgrec.models.build.build_objective`, without the stop-gradient."""
    from surgrec.models.build import build_objective
    from surgrec.models.jepa import Jepa

    class WithoutStopGradient(Jepa):
        """Features of the student itself are the target, and both sides of the loss move."""

        def teach(self, frames: Tensor) -> Tensor:
            return self.normalised(self.whole_clip(self.encoder, frames))

    objective = build_objective(config, seed, frames, size)
    objective.__class__ = WithoutStopGradient
    return objective


def main(arguments: list[str]) -> int:
    """Exit status of surgrec.pretrain."""
    from surgrec.kernels.feature_loss import plain_feature_loss

    from surgrec import pretrain

    # The kernel of the loss gives its targets no gradient.
    with (
        patch("surgrec.training.session.build_objective", build_broken),
        patch("surgrec.models.jepa.feature_loss", plain_feature_loss),
    ):
        return pretrain.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
