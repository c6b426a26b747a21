"""The log-likelihood of given answers: the sum of log p(token | prompt, tokens before) over an answer's
tokens."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor

ROTARY_3D: Final = frozenset({"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"})
"""Models whose positions run over time, height and width: text goes on behind the largest one of the prompt
(Qwen2-VL, arXiv 2409.12191, 2.1)."""
PREFIX_ONCE: Final = ROTARY_3D | {"llava", "llava_next", "internvl"}
"""Models that read a prompt with its pictures once for all answers to it; others read it with each."""

Ids = Sequence[Sequence[int]]
"""Token ids of K answers."""


def log_likelihoods(model: Any, inputs: Mapping[str, Tensor], answers: Sequence[Ids]) -> list[list[float]]:
    """For each of B prompts those of its K answers, float32 sums, by one reading of the prompts.

    inputs: what the model takes, padded on the left, input_ids and attention_mask [B, P]. The model is one of
    PREFIX_ONCE.
    """
    seen: list[Tensor] = []
    three = model.config.model_type in ROTARY_3D
    with _positions(model, seen) if three else nullcontext():
        out = model(**inputs, use_cache=True, logits_to_keep=1)
    # A model that is spread over GPUs answers on another one than it is asked on.
    device, count = inputs["input_ids"].device, len(answers[0])
    first = torch.log_softmax(out.logits[:, -1].float(), -1).to(device)
    ids, valid = _padded([tokens for each in answers for tokens in each], device)
    rows = torch.arange(len(answers), device=device).repeat_interleave(count)
    total = first[rows, ids[:, 0]]
    if ids.shape[1] > 1:
        cache = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        memory = getattr(out, cache)
        memory.batch_repeat_interleave(count)
        mask = inputs["attention_mask"].repeat_interleave(count, 0)
        fed, given = ids[:, :-1], valid[:, :-1]
        more: dict[str, Any] = {cache: memory}
        if three:
            # [3 or 4, B, P]: time, height and width come last.
            hidden = inputs["attention_mask"] == 0
            last = seen[0][-3:].masked_fill(hidden.to(seen[0].device), -1).amax((0, 2))
            behind = last.to(device).repeat_interleave(count)[:, None] + 1
            behind = behind + torch.arange(fed.shape[1], device=device)
            more["position_ids"] = behind.expand(3, -1, -1)
        logits = model(input_ids=fed, attention_mask=torch.cat([mask, given.long()], 1), **more).logits
        total = total + _summed(logits, ids[:, 1:], valid[:, 1:])
    return total.view(-1, count).tolist()


@contextmanager
def _positions(model: Any, seen: list[Tensor]) -> Iterator[None]:
    """Puts the positions that the language model is given into `seen`."""

    def keep(_: Any, args: Any, given: dict[str, Any]) -> None:
        seen.append(given["position_ids"])

    handle = model.model.language_model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def whole_log_likelihoods(model: Any, inputs: Mapping[str, Tensor], answers: Ids) -> list[float]:
    """Those of K answers to one prompt, which is read with each of them. inputs: the prompt and its pictures
    K times, input_ids and attention_mask [K, P]. Any model."""
    prompt = inputs["input_ids"]
    ids, valid = _padded(answers, prompt.device)
    longer = {
        **inputs,
        "input_ids": torch.cat([prompt, ids], 1),
        "attention_mask": torch.cat([inputs["attention_mask"], valid.long()], 1),
    }
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in inputs:
            longer[name] = torch.cat([inputs[name], torch.zeros_like(ids)], 1)
    logits = model(**longer, use_cache=False).logits[:, prompt.shape[1] - 1 : -1]
    return _summed(logits, ids, valid).tolist()


def _padded(answers: Ids, device: torch.device) -> tuple[Tensor, Tensor]:
    """int64 [N, L] and bool [N, L]: ids, padded on the right, and which of them are there."""
    longest = max(map(len, answers))
    ids = torch.tensor([[*tokens, *[0] * (longest - len(tokens))] for tokens in answers], device=device)
    lengths = torch.tensor([len(tokens) for tokens in answers], device=device)
    return ids, torch.arange(longest, device=device) < lengths[:, None]


def _summed(logits: Tensor, ids: Tensor, valid: Tensor) -> Tensor:
    """float32 [N] of logits [N, L, V], on the device of ids."""
    log_shares = torch.log_softmax(logits.float(), -1)
    taken = log_shares.gather(2, ids.to(logits.device)[..., None])[..., 0]
    return taken.to(ids.device).masked_fill(~valid, 0.0).sum(1)
