"""Folders of tiny, randomly initialised vision-language models with processors, made without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
}
MARKS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SAYINGS = (
    "What does this picture of a colonoscopy show? Answer with one letter.",
    "A. polyp B. no polyp C. bleeding of the mucosa. The options: adenoma, left, clockwise, growing",
    "You are a surgeon. Which motion does the clip show? 0.5 seconds",
)
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}IMAGE{% elif part.type == 'video' %}VIDEO{% else %}{{ part.text }}"
    "{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_next", "internvl")


def make_tokenizer(**more: str) -> Any:
    """Byte-level BPE, trained here on a few sentences. more: names of marks, as processors ask for them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(MARKS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SAYINGS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|end|>", extra_special_tokens=more
    )


def make_model(family: str, folder: Path, chat: bool = True) -> Path:
    """A model of a family, with its processor, in a folder."""
    import torch

    config, processor = getattr(_Families, family)()
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(3)
    model = AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6.0)  # so that answers depend on what is seen
    model.save_pretrained(folder)
    if not chat:
        processor.chat_template = None
    processor.save_pretrained(folder)
    return folder


SMALL_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "out_hidden_size": 32,
    "num_heads": 2,
    "intermediate_size": 48,
}


class _Families:
    @staticmethod
    def _qwen(version: str, vision: dict[str, Any], rope: dict[str, Any]) -> tuple[Any, Any]:
        import transformers

        tokenizer = make_tokenizer()
        ids = dict(zip(MARKS, tokenizer.convert_tokens_to_ids(list(MARKS)), strict=True))
        text = {**TEXT, "vocab_size": len(tokenizer), "rope_parameters": rope}
        tied = version == "Qwen2_5_VL"  # as in the small ones of each series
        config = getattr(transformers, f"{version}Config")(
            text_config={**text, "tie_word_embeddings": tied},
            vision_config=vision,
            tie_word_embeddings=tied,
            image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"],
            vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"],
            eos_token_id=ids["<|im_end|>"],
        )
        patch = 16 if version == "Qwen3VL" else 14
        size = {"shortest_edge": 28 * 28, "longest_edge": 112 * 112}
        pixels = {"patch_size": patch, "temporal_patch_size": 2, "merge_size": 2, "size": size}
        video = "Qwen3VLVideoProcessor" if version == "Qwen3VL" else "Qwen2VLVideoProcessor"
        longer = {"shortest_edge": 28 * 28, "longest_edge": 64 * 112 * 112}
        processor = getattr(transformers, f"{version}Processor")(
            image_processor=transformers.Qwen2VLImageProcessor(**pixels),
            tokenizer=tokenizer,
            video_processor=getattr(transformers, video)(**{**pixels, "size": longer}),
            chat_template=CHAT.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>").replace(
                "VIDEO", "<|vision_start|><|video_pad|><|vision_end|>"
            ),
        )
        return config, processor

    @staticmethod
    def qwen2_vl() -> tuple[Any, Any]:
        vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2}
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
        return _Families._qwen("Qwen2VL", vision, rope)

    @staticmethod
    def qwen2_5_vl() -> tuple[Any, Any]:
        vision = SMALL_VISION | {"fullatt_block_indexes": [1], "window_size": 56}
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
        return _Families._qwen("Qwen2_5_VL", vision, rope)

    @staticmethod
    def qwen3_vl() -> tuple[Any, Any]:
        vision = SMALL_VISION | {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
        return _Families._qwen("Qwen3VL", vision, rope)

    @staticmethod
    def llava_next() -> tuple[Any, Any]:
        from transformers import LlavaNextConfig, LlavaNextImageProcessor, LlavaNextProcessor

        tokenizer = make_tokenizer()
        grids = [[28, 56], [56, 28], [56, 56]]
        config = LlavaNextConfig(
            vision_config={
                "model_type": "clip_vision_model",
                **VISION,
                "patch_size": 14,
                "intermediate_size": 48,
            },
            text_config={"model_type": "llama", **TEXT, "vocab_size": len(tokenizer)},
            image_token_index=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
            image_grid_pinpoints=grids,
            image_seq_length=4,
        )
        size = {"shortest_edge": 28}
        processor = LlavaNextProcessor(
            image_processor=LlavaNextImageProcessor(
                size=size, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=grids
            ),
            tokenizer=tokenizer,
            patch_size=14,
            vision_feature_select_strategy="default",
            image_token="<|image_pad|>",
            num_additional_image_tokens=1,
            chat_template=CHAT.replace("IMAGE", "<|image_pad|>"),
        )
        return config, processor

    @staticmethod
    def internvl() -> tuple[Any, Any]:
        from transformers import (
            GotOcr2ImageProcessor,
            InternVLConfig,
            InternVLProcessor,
            InternVLVideoProcessor,
        )

        tokenizer = make_tokenizer(
            start_image_token="<|vision_start|>",
            end_image_token="<|vision_end|>",
            context_image_token="<|image_pad|>",
            video_token="<|video_pad|>",
        )
        config = InternVLConfig(
            vision_config={**VISION, "image_size": [28, 28], "patch_size": [7, 7], "intermediate_size": 48},
            text_config={"model_type": "qwen2", **TEXT, "vocab_size": len(tokenizer)},
            image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
            image_seq_length=4,
        )
        square = {"height": 28, "width": 28}
        processor = InternVLProcessor(
            image_processor=GotOcr2ImageProcessor(size=square, crop_to_patches=True, max_patches=3),
            tokenizer=tokenizer,
            video_processor=InternVLVideoProcessor(size=square),
            image_seq_length=4,
            chat_template=CHAT.replace("IMAGE", "<|image_pad|>\n").replace("VIDEO", "<|video_pad|>\n"),
        )
        return config, processor
