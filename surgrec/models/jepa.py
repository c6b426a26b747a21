"""Joint-embedding prediction in video: V-JEPA (Bardes et al. 2024, arXiv 2404.08471) and V-JEPA 2."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import get_ema_multi_avg_fn

from surgrec.configs.model import VIT_SHAPES, JepaConfig
from surgrec.kernels.counter_rng import stream_key
from surgrec.kernels.feature_loss import feature_loss
from surgrec.kernels.masking import BlockMask, multi_block_mask
from surgrec.kernels.patchify import patchify, patchify_packed, token_grid
from surgrec.models.health import feature_health, relative_distance
from surgrec.models.initial import initialise_jepa
from surgrec.models.objective import Objective, ObjectiveOutput, check_clips
from surgrec.models.packing import Packed
from surgrec.models.predictor import Predictor
from surgrec.models.shards import local_tensors
from surgrec.models.vit import VisionTransformer, compute_dtype, transformer_flops


class Jepa(Objective):
    """A student sees the context, a predictor guesses the teacher's features of the targets; L1 loss.

    The teacher is an exponential moving average of the student. It sees the whole clip, and its output is
    layer-normalised without affine. Every clip of a batch counts the same in the loss, and every mask group
    of a clip, however many targets it has: so the loss of a batch is the mean of its clips' losses.
    """

    def __init__(self, config: JepaConfig, seed: int, frames: int = 16, size: int = 224) -> None:
        super().__init__()
        if not config.groups:
            raise ValueError("JEPA needs at least one group of blocks (model.groups is empty)")
        self.config = config
        self.grid = token_grid((frames, size, size, 3), config.tubelet, config.patch)
        self.mask_key = stream_key(seed, "jepa/block masks")
        self.values = config.tubelet * config.patch**2 * 3
        shape = VIT_SHAPES[config.size]
        self.encoder = VisionTransformer(
            shape.depth,
            shape.width,
            shape.heads,
            self.grid,
            self.values,
            config.position,
            config.uniform_power,
            key_bias="learned",
            backend=config.attention,
            checkpoint_activations=config.checkpoint_activations,
        )
        self.predictor = Predictor(config, self.grid, shape.width)
        initialise_jepa(self.encoder)
        initialise_jepa(self.predictor)
        self.teacher = copy.deepcopy(self.encoder).requires_grad_(False)

    def forward(
        self, frames: Tensor, samples: Tensor, step: int = 0, monitor: bool = False
    ) -> ObjectiveOutput:
        """Loss of clips uint8 [B, T, H, W, 3]; samples int64 [B] and the step choose the masks.

        Monitors, if asked for: those of `health.feature_health` for the teacher's normalised features, and
        teacher_distance, how far the student's parameters are from the teacher's, relative to these.
        """
        teaching = self.teach(frames)
        output = ObjectiveOutput(self.loss(frames, teaching, self.masks(samples, step)))
        if monitor:
            output.monitors.update(feature_health(teaching))
            # Whole tensors also under FSDP: both networks have just run, see training/parallel.py.
            pairs = self.encoder.parameters(), self.teacher.parameters()
            output.monitors["teacher_distance"] = relative_distance(*pairs)
        return output

    def masks(self, samples: Tensor, step: int) -> list[BlockMask]:
        """Masks of all groups, on the CPU: lengths are needed there, and drawing takes a millisecond."""
        groups, equal = self.config.groups, self.config.equal_lengths
        return multi_block_mask(self.mask_key, samples.cpu(), step, self.grid, groups, equal)

    @torch.no_grad()
    def teach(self, frames: Tensor) -> Tensor:
        """The teacher's features of every token, normalised: float32 [B, N, width]."""
        return self.normalised(self.whole_clip(self.teacher, frames))

    @staticmethod
    def normalised(features: Tensor) -> Tensor:
        """Features [..., width] layer-normalised without affine, float32."""
        features = features.float()
        return functional.layer_norm(features, features.shape[-1:])

    def loss(self, frames: Tensor, teaching: Tensor, masks: list[BlockMask]) -> Tensor:
        """Mean over groups and clips of the mean absolute error at the targets, float32 [].

        Args:
            teaching: [B, N, width], what `teach` gave for the frames.
        """
        clips, device, config = len(frames), frames.device, self.config
        context = Packed.join([m.context for m in masks], [m.context_lengths for m in masks], device)
        target = Packed.join([m.target for m in masks], [m.target_lengths for m in masks], device)
        patches = patchify_packed(
            frames,
            context.tokens,
            context.device_lengths,
            config.tubelet,
            config.patch,
            config.mean,
            config.std,
            compute_dtype(self.encoder.patch_embedding.weight),
        )
        encoded = self.encoder(patches, context.tokens, context.lengths)
        groups = torch.arange(len(masks), device=device).repeat_interleave(clips)
        predicted = self.predictor(encoded, context, target, groups)
        clip = target.repeat(torch.arange(clips, device=device).repeat(len(masks)))
        weights = target.repeat(1 / (target.device_lengths.float() * len(groups)))
        rows = clip * teaching.shape[1] + target.tokens
        return feature_loss(predicted, teaching.flatten(0, 1), rows, weights)

    def features(self, frames: Tensor) -> Tensor:
        """The teacher's output (its final norm included) for every token: [B, N, width]."""
        return self.whole_clip(self.teacher, frames)

    def whole_clip(self, network: VisionTransformer, frames: Tensor) -> Tensor:
        """What a network, the teacher or the student, says of every token of the clips: [B, N, width]."""
        # Apart from features(), which FSDP wraps as an entry point: forward() must not enter there again.
        config = self.config
        check_clips(frames.shape, self.grid, config.tubelet, config.patch)
        tokens = torch.arange(math.prod(self.grid), device=frames.device).expand(len(frames), -1)
        dtype = compute_dtype(network.patch_embedding.weight)
        patches = patchify(frames, tokens, config.tubelet, config.patch, config.mean, config.std, dtype)
        features: Tensor = network(patches, tokens)
        return features

    def momentum(self, step: int, total_steps: int) -> float:
        """Of the teacher after this step: linear from ema_start at step 0 to ema_end at total_steps."""
        start, end = self.config.ema_start, self.config.ema_end
        return start + (end - start) * min(step / max(total_steps, 1), 1.0)

    @torch.no_grad()
    def after_step(self, step: int, total_steps: int) -> None:
        """Moves the teacher: teacher = m * teacher + (1 - m) * student; under FSDP, this rank's shards."""
        average = get_ema_multi_avg_fn(self.momentum(step, total_steps))
        average(local_tensors(self.teacher.parameters()), local_tensors(self.encoder.parameters()), None)

    def flops_per_clip(self) -> float:
        """See `Objective.flops_per_clip`; masks vary, so this is the mean over 32 steps of 16 clips each.

        The teacher counts its forward pass once.
        """
        encoder, config = self.encoder, self.config
        tokens = math.prod(self.grid)
        embedding = 2 * self.values * encoder.width
        teacher = tokens * embedding + transformer_flops(encoder.depth, encoder.width, tokens, tokens**2)
        trained, clips = 0.0, 0
        for step in range(32):
            samples = torch.arange(16) + step * 16
            clips += len(samples)
            for mask in self.masks(samples, step):
                for context, target in zip(
                    mask.context_lengths.tolist(), mask.target_lengths.tolist(), strict=True
                ):
                    both = context + target
                    trained += context * embedding
                    trained += transformer_flops(encoder.depth, encoder.width, context, context**2)
                    trained += 2 * (context + target) * encoder.width * config.predictor_width
                    trained += transformer_flops(
                        config.predictor_depth, config.predictor_width, both, both**2
                    )
        return teacher + 3.0 * trained / clips
