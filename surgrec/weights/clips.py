"""What the layouts of video transformers end with: an encoder for clips as they are asked for."""

from __future__ import annotations

from surgrec.models.encoder_form import EncoderForm
from surgrec.models.video_encoder import VideoEncoder, build_encoder
from surgrec.weights.coverage import Taker
from surgrec.weights.errors import WeightsError
from surgrec.weights.layout import ClipForm, ReadOptions
from surgrec.weights.positions import reshaped
from surgrec.weights.video_parts import Published, Weights


def finished(
    taker: Taker,
    form: EncoderForm,
    weights: Weights,
    published: Published,
    asked: ReadOptions,
    known: tuple[str, ...] = (),
) -> tuple[VideoEncoder, ClipForm]:
    """The encoder, for clips as they are asked for, once each key of the file is accounted for.

    known: which of `frames`, `size`, `mean` the file itself says. Raises WeightsError.
    """
    for name in ("frames", "size", "mean"):
        if name not in known and getattr(asked, name, None) is None:
            value = "ImageNet's, and std" if name == "mean" else str(getattr(form, name))
            taker.assume(name, value, "as published; the file does not say")
    form, weights = reshaped(taker, form, weights, asked)
    rate = clip_rate(taker, published, asked)
    # Before anything is built: until here, a missing tensor is an empty one.
    taker.finish()
    try:
        encoder = build_encoder(form, weights)
    except (ValueError, RuntimeError) as error:
        raise WeightsError(
            f"{taker.path}: no encoder can be built of it ({error}); fetch its files again, or mend its"
            " configuration"
        ) from error
    return encoder, clip_of(form, *rate)


def clip_rate(taker: Taker, published: Published, asked: ReadOptions) -> tuple[int | None, float | None]:
    """Stride or frames per second of clips. Raises WeightsError where both are asked for."""
    if asked.stride is not None and asked.fps is not None:
        raise WeightsError(f"{taker.path}: stride={asked.stride} and fps={asked.fps} contradict; give one")
    if asked.stride is not None or asked.fps is not None:
        return asked.stride, asked.fps
    value = f"stride {published.stride}" if published.stride is not None else f"{published.fps:g} fps"
    taker.assume("rate", value, "as published; the file does not say")
    return published.stride, published.fps


def clip_of(form: EncoderForm, stride: int | None, fps: float | None) -> ClipForm:
    """What an encoder of this form wants to see."""
    return ClipForm(
        form.frames, form.size, stride, fps, form.mean, form.std, form.tubelet, form.patch, form.width
    )
