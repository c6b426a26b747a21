"""A vision-language model of transformers, its processor, and how prompts with pictures become its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image

from surgrec.configs.vlm import Kind, LocalConfig
from surgrec.evaluation.device import device_of
from surgrec.vision_language.backend import BackendError
from surgrec.vision_language.frames import Pictures
from surgrec.vision_language.records import Question


class PicturesRefused(ValueError):  # noqa: N818 - of one clip, it becomes a Failure
    """The model's processor does not take the pictures; the message says why."""


@dataclass(frozen=True)
class LocalModel:
    """folder: of the model's files. weights: what tells them from others, a commit of the hub or a digest."""

    name: str
    folder: Path
    weights: str
    kind: Kind
    options: LocalConfig

    @cached_property
    def device(self) -> torch.device:
        """Of the inputs. Raises FeatureError for a GPU that is not there."""
        return device_of("auto" if self.options.device == "spread" else self.options.device)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        if self.options.dtype == "auto":
            return torch.bfloat16 if self.device.type == "cuda" else torch.float32
        found = getattr(torch, self.options.dtype)
        assert isinstance(found, torch.dtype)
        return found

    @cached_property
    def processor(self) -> Any:
        """Raises BackendError where there is none that takes pictures by a chat template."""
        from transformers import AutoProcessor

        try:
            processor = AutoProcessor.from_pretrained(self.folder, trust_remote_code=False)
        except (OSError, ValueError, ImportError, KeyError, AttributeError, TypeError) as error:
            raise BackendError(
                f"hf:{self.name}: its processor cannot be loaded ({one_line(error)})"
            ) from error
        if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
            raise BackendError(
                f"hf:{self.name}: has no processor of pictures and text; give a vision-language model"
            )
        if not getattr(processor, "chat_template", None):
            raise BackendError(
                f"hf:{self.name}: has no chat template, so that nobody knows how it wants to be asked; give a"
                " model that was tuned to instructions, or put its chat_template.jinja into its folder"
            )
        if self.kind == "video" and getattr(processor, "video_processor", None) is None:
            raise BackendError(f"hf:{self.name}: takes no videos; give --look.kind frames")
        processor.tokenizer.padding_side = "left"
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        return processor

    @cached_property
    def model(self) -> Any:
        """On its device, without gradients. Raises BackendError for weights that are lacking or do not
        fit."""
        from safetensors import SafetensorError
        from transformers import AutoModelForImageTextToText, GenerationConfig

        where = "auto" if self.options.device == "spread" else self.device
        if self.dtype == torch.float32:
            # Convolutions of patches are in TF32 otherwise, of 10 bits.
            torch.backends.cudnn.allow_tf32 = False
        try:
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                self.folder,
                dtype=self.dtype,
                device_map=where,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except torch.OutOfMemoryError as error:
            raise BackendError(
                f"hf:{self.name}: the GPU has no room for it; give --local.device spread, or a smaller model"
            ) from error
        except (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError) as error:
            raise BackendError(f"hf:{self.name}: cannot be loaded ({one_line(error)})") from error
        model, report = loaded
        lacking = sorted({*report["missing_keys"], *(str(each[0]) for each in report["mismatched_keys"])})
        if lacking:
            raise BackendError(
                f"hf:{self.name}: {len(lacking)} of its weights are lacking or of another shape, {lacking[0]}"
                " among them; fetch it again"
            )
        # Greedy, as every model is asked here, whatever sampling and penalties it comes with.
        own = model.generation_config
        model.generation_config = GenerationConfig(
            do_sample=False,
            eos_token_id=own.eos_token_id if own.eos_token_id is not None else self.tokenizer.eos_token_id,
            bos_token_id=own.bos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return model.eval().requires_grad_(False)

    @property
    def tokenizer(self) -> Any:
        """Of the processor."""
        return self.processor.tokenizer

    @cached_property
    def _control_tokens(self) -> tuple[str, ...]:
        added = self.tokenizer.added_tokens_decoder.values()
        return tuple(str(token) for token in added if token.special)

    def prompt_of(self, question: Question, pictures: Pictures) -> str:
        """The text up to where the model answers. Raises BackendError for text that steers the model, or that
        its template does not take."""
        for token in self._control_tokens:
            if token in question.text or token in question.system:
                raise BackendError(
                    f"prompt {question.prompt!r} holds {token!r}, a control token of hf:{self.name};"
                    " change the"
                    " wording, or the name of the class"
                )
        video = self.kind == "video"
        shown: list[dict[str, str]] = [{"type": "video" if video else "image"}]
        content = [
            *(shown if video else shown * pictures.shown.count),
            {"type": "text", "text": question.text},
        ]
        chat = [{"role": "user", "content": content}]
        if question.system:
            chat.insert(0, {"role": "system", "content": [{"type": "text", "text": question.system}]})
        where = f"hf:{self.name}: its chat template"
        try:
            text = self.processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        except TemplateError as error:
            raise BackendError(f"{where} refuses prompt {question.prompt!r} ({one_line(error)})") from error
        assert isinstance(text, str)
        for part, name in ((question.text, "text"), (question.system, "system message")):
            if part.strip() not in text:
                raise BackendError(
                    f"{where} leaves out the {name} of prompt {question.prompt!r}; change the prompt, or the"
                    " template in the model's folder"
                )
        return text

    def inputs_of(self, prompts: Sequence[str], pictures: Sequence[Pictures]) -> Any:
        """What the model takes for B prompts, padded on the left, on its device. Raises PicturesRefused."""
        more: dict[str, Any] = {}
        if self.kind == "video":
            more["videos"] = [each.pixels for each in pictures]
            more["video_metadata"] = [_metadata(each) for each in pictures]
            more["do_sample_frames"] = False
        else:
            more["images"] = [Image.fromarray(frame) for each in pictures for frame in each.pixels]
        bos = self.tokenizer.bos_token
        if bos is not None and prompts[0].startswith(bos):
            more["add_special_tokens"] = False
        try:
            inputs = self.processor(text=list(prompts), padding=True, return_tensors="pt", **more)
        except ValueError as error:
            raise PicturesRefused(one_line(error)) from error
        return inputs.to(self.device, dtype=self.dtype)

    def continuation(self, prompt: str, target: str) -> list[int]:
        """Token ids of an answer behind a prompt: with a space before it, unless the prompt ends in white
        space."""
        text = target if prompt[-1:].isspace() else f" {target}"
        both, before = (
            self.tokenizer(each, add_special_tokens=False).input_ids for each in (prompt + text, prompt)
        )
        if both[: len(before)] == before and len(both) > len(before):
            return list(both[len(before) :])
        # The tokenizer joins the prompt's end with the answer, which a model that writes freely cannot do.
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)


def _metadata(pictures: Pictures) -> dict[str, Any]:
    """As transformers wants it: frames 0 to T - 1 at the rate that the clip's have. A lone frame, and grey
    ones, have two a second, the rate that Qwen's models assume."""
    seconds, count = pictures.shown.seconds, pictures.shown.count
    length = seconds[-1] - seconds[0] if len(seconds) > 1 else 0.0
    rate = (count - 1) / length if length > 0 else 2.0
    return {
        "total_num_frames": count,
        "fps": rate,
        "frames_indices": list(range(count)),
        "width": pictures.shown.width,
        "height": pictures.shown.height,
        "duration": count / rate,
    }


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split())[:400] or type(error).__name__
