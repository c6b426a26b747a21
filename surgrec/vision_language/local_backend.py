"""Asking a model of transformers, in batches: greedy writing, and the log-likelihood of each option."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from surgrec.vision_language.backend import OVERFLOW, BackendError, Failure, Request, Take
from surgrec.vision_language.frames import Pictures
from surgrec.vision_language.local_model import LocalModel, PicturesRefused
from surgrec.vision_language.records import Question, Reply, Way
from surgrec.vision_language.target_scores import PREFIX_ONCE, log_likelihoods, whole_log_likelihoods


class LocalBackend:
    """A model on this machine; it is loaded when it is first asked."""

    def __init__(self, local: LocalModel, max_new_tokens: int) -> None:
        self._local, self._most = local, max_new_tokens
        self._answered = False
        self._odd: list[tuple[Request, str]] = []
        self._counted: dict[tuple[str, str, int, int, int], int] = {}
        self.settings: Mapping[str, Any] = {
            "weights": local.weights,
            "dtype": str(local.dtype).removeprefix("torch."),
            "device": local.device.type,
            "max_new_tokens": max_new_tokens,
        }

    def tokens(self, question: Question, pictures: Pictures) -> int:
        """Of a prompt, by the model's processor."""
        shown = pictures.shown
        key = question.system, question.text, shown.count, shown.height, shown.width
        if key not in self._counted:
            prompt = self._local.prompt_of(question, pictures)
            self._counted[key] = int(self._local.inputs_of([prompt], [pictures])["input_ids"].shape[1])
        return self._counted[key]

    def prepare(self) -> None:
        """Loads the model. Raises BackendError."""
        _ = self._local.model

    def ask(self, requests: Iterator[Request], take: Take) -> None:
        """As Backend has it."""
        # Some processors take videos of one length only.
        waiting: dict[tuple[Way, int], list[Request]] = {}
        try:
            with torch.inference_mode():
                for request in requests:
                    batch = waiting.setdefault((request.way, request.pictures.shown.count), [])
                    batch.append(request)
                    if len(batch) == self._local.options.batch:
                        self._batch(request.way, batch, take)
                        batch.clear()
                for (way, _), batch in waiting.items():
                    if batch:
                        self._batch(way, batch, take)
                self._tell_odd(take)
        except torch.OutOfMemoryError as error:
            raise BackendError(
                f"the GPU has no memory left for {self._local.options.batch} questions at a time. What is"
                " answered is kept: run the same command again with a smaller --local.batch"
            ) from error

    def _batch(self, way: Way, batch: Sequence[Request], take: Take) -> None:
        prompts = [self._local.prompt_of(each.question, each.pictures) for each in batch]
        try:
            inputs = self._local.inputs_of(prompts, [each.pictures for each in batch])
        except PicturesRefused as error:
            self._refused(way, batch, take, error)
            return
        lengths = inputs["attention_mask"].sum(1).tolist()
        targets = [each.question.targets if way == "options" else () for each in batch]
        answers = [
            [self._local.continuation(prompt, target) for target in own]
            for prompt, own in zip(prompts, targets, strict=True)
        ]
        context = getattr(self._local.model.config.get_text_config(), "max_position_embeddings", None)
        kept = []
        for number, length in enumerate(lengths):
            more = self._most if way == "generate" else max(map(len, answers[number]))
            if context is not None and length + more > context:
                reason = f"{OVERFLOW}: {length} tokens and {more} to come, the model takes {context}"
                take(batch[number], Failure(reason, passes=False))
            else:
                kept.append(number)
        if not kept:
            return
        if len(kept) < len(batch):
            prompts, batch = [prompts[k] for k in kept], [batch[k] for k in kept]
            answers, lengths = [answers[k] for k in kept], [lengths[k] for k in kept]
            inputs = self._local.inputs_of(prompts, [each.pictures for each in batch])
        if way == "generate":
            replies = self._written(inputs, lengths)
        else:
            replies = self._scored(inputs, prompts, batch, answers, lengths)
        for request, reply in zip(batch, replies, strict=True):
            take(request, reply)
        self._answered = True
        self._tell_odd(take)

    def _refused(self, way: Way, batch: Sequence[Request], take: Take, error: PicturesRefused) -> None:
        """Asks one by one, to tell which one it is."""
        if len(batch) > 1:
            for each in batch:
                self._batch(way, [each], take)
            return
        self._odd.append((batch[0], str(error)))
        if self._answered or len(self._odd) >= self._local.options.batch:
            self._tell_odd(take)

    def _tell_odd(self, take: Take) -> None:
        """Of those whose pictures were refused. Where nothing else was answered, it is not for the clips'
        sake: raises BackendError."""
        if self._odd and not self._answered:
            raise BackendError(
                f"hf:{self._local.name}: its processor refuses the pictures ({self._odd[0][1]})"
            )
        for request, reason in self._odd:
            take(request, Failure(f"pictures refused: {reason}", passes=False))
        self._odd.clear()

    def _written(self, inputs: Any, lengths: Sequence[int]) -> list[Reply]:
        model, tokenizer = self._local.model, self._local.tokenizer
        out = model.generate(**inputs, max_new_tokens=self._most)[:, inputs["input_ids"].shape[1] :].tolist()
        ends = model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        replies = []
        for tokens, length in zip(out, lengths, strict=True):
            end = next((at for at, token in enumerate(tokens) if token in ends), None)
            written = tokens if end is None else tokens[:end]
            text = tokenizer.decode(written, skip_special_tokens=True)
            finish = "length" if end is None else "stop"
            replies.append(Reply(text, (), (), finish, length, len(written) + (end is not None)))
        return replies

    def _scored(
        self,
        inputs: Any,
        prompts: Sequence[str],
        batch: Sequence[Request],
        answers: list[list[list[int]]],
        lengths: Sequence[int],
    ) -> list[Reply]:
        model = self._local.model
        if model.config.model_type in PREFIX_ONCE and len({len(each) for each in answers}) == 1:
            found = log_likelihoods(model, inputs, answers)
        else:
            found = []
            for prompt, each, own in zip(prompts, batch, answers, strict=True):
                scores: list[float] = []
                for first in range(0, len(own), self._local.options.batch):
                    part = own[first : first + self._local.options.batch]
                    copies = self._local.inputs_of([prompt] * len(part), [each.pictures] * len(part))
                    scores += whole_log_likelihoods(model, copies, part)
                found.append(scores)
        if not all(math.isfinite(score) for scores in found for score in scores):
            raise BackendError(
                f"hf:{self._local.name}: gives log-likelihoods that are not finite: its weights are no"
                " good, or"
                " --local.dtype is too narrow for it"
            )
        return [
            Reply("", tuple(scores), tuple(map(len, own)), "", length)
            for scores, own, length in zip(found, answers, lengths, strict=True)
        ]
