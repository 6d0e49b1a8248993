"""A released model for people: classify, transcribe, describe and embed plain pictures, sounds and
texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmscale.checkpoint.run_folder import load_checkpoint, open_run
from mmscale.checkpoint.run_state import read_state
from mmscale.errors import UserError
from mmscale.plugins import import_plugins
from mmscale.predict.decoding import Decoding
from mmscale.predict.predictor import Predictor
from mmscale.predict.query import Part
from mmscale.predict.question import (
    checked_text,
    choose_head,
    choose_prompt,
    read_question,
    trained_heads,
)
from mmscale.predict.raw_input import AudioInput, ImageInput
from mmscale.release.layout import WEIGHT_TYPES
from mmscale.release.open_release import is_release, load_release


class TrainedModel:
    """A model with its tokenizer. Made by `load`.

    Inputs: ``image`` is a path, encoded bytes, a PIL image or a uint8 array ([H, W], [H, W, 3 or 4]
    or [3, H, W]); ``audio`` is a path, encoded bytes or a pair (float array, rate in Hz); ``text``
    is a string. Several inputs are given in the order of the training task that had the same ones.

    ``prompt`` is the prompt of the training task. Left out, it is the one prompt that was trained
    with such inputs; if there were several, one must be named. Every method raises `UserError` for
    input that cannot be used.
    """

    def __init__(self, predictor: Predictor, step: int) -> None:
        self.predictor, self.config, self.step = predictor, predictor.config, step
        self.parameters = sum(parameter.numel() for parameter in predictor.model.parameters())

    def classify(
        self,
        labels: Sequence[str] | None = None,
        *,
        image: ImageInput | None = None,
        audio: AudioInput | None = None,
        text: str | None = None,
        prompt: str | None = None,
    ) -> list[tuple[str, float]]:
        """(label, probability) of every label, the likeliest first.

        The probability is the likelihood of the label as the whole answer, normalised over
        ``labels``. Without ``labels``: that of each class of the linear head that a classify task
        trained with such inputs.
        """
        if labels is None:
            return self._by_head(self._query(image, audio, text)[0], prompt, image, audio, text)
        labels = (
            [] if isinstance(labels, str) else [checked_text(label, "labels") for label in labels]
        )
        if not labels:
            raise UserError("labels: give a list of the answers to choose from")
        query, trained = self._query(image, audio, text)
        scores = self.predictor.label_scores([query], choose_prompt(prompt, trained), labels)[0]
        weights = np.exp(scores.astype(np.float64) - scores.max())
        weights /= weights.sum()
        order = np.argsort(-scores, kind="stable")
        return [(labels[number], float(weights[number])) for number in order.tolist()]

    def _by_head(
        self, query: list[Part], prompt: str | None, *inputs: Any
    ) -> list[tuple[str, float]]:
        kinds = [
            kind
            for kind, given in zip(("image", "audio", "text"), inputs, strict=True)
            if given is not None
        ]
        own, head = choose_head(prompt, trained_heads(self.config, kinds))
        scores = np.exp(self.predictor.class_scores([query], own, head)[0].astype(np.float64))
        pairs = zip(self.config.model.classes[head], scores.tolist(), strict=True)
        return sorted(pairs, key=lambda pair: -pair[1])

    def answer(
        self,
        *,
        image: ImageInput | None = None,
        audio: AudioInput | None = None,
        text: str | None = None,
        prompt: str | None = None,
        **decoding: Any,
    ) -> str:
        """The model's answer: greedy, or by the keywords of `mmscale.predict.decoding.Decoding`.

        Such as ``beams=4``, ``temperature=0.8, top_p=0.95, seed=1``, ``labels=["yes", "no"]``,
        ``max_new_tokens=20``.
        """
        return self.answers([{"image": image, "audio": audio, "text": text}], prompt, **decoding)[0]

    def answers(
        self, inputs: Sequence[Mapping[str, Any]], prompt: str | None = None, **decoding: Any
    ) -> list[str]:
        """`answer` to many inputs at once, each a mapping of ``image``, ``audio`` and ``text``;
        much faster.
        """
        unknown = {name for question in inputs for name in question} - {"image", "audio", "text"}
        if unknown:
            raise UserError(f"answers: {min(unknown)!r} is none of image, audio, text")
        questions = [
            self._query(question.get("image"), question.get("audio"), question.get("text"))
            for question in inputs
        ]
        prompts = [choose_prompt(prompt, trained) for _, trained in questions]
        out = [""] * len(questions)
        for chosen in dict.fromkeys(prompts):
            rows = [row for row, own in enumerate(prompts) if own == chosen]
            texts = self.predictor.generate(
                [questions[row][0] for row in rows], chosen, _decoding(decoding)
            )
            for row, answer in zip(rows, texts, strict=True):
                out[row] = answer
        return out

    def transcribe(self, audio: AudioInput, prompt: str | None = None, **decoding: Any) -> str:
        """What is said in a clip; keywords as `answer`'s."""
        return self.answer(audio=audio, prompt=prompt, **decoding)

    def describe(self, image: ImageInput, prompt: str | None = None, **decoding: Any) -> str:
        """What a picture shows; keywords as `answer`'s."""
        return self.answer(image=image, prompt=prompt, **decoding)

    def embed(
        self,
        *,
        image: ImageInput | None = None,
        audio: AudioInput | None = None,
        text: str | None = None,
    ) -> NDArray[np.float32]:
        """Embedding of one picture, one sound or one text: unit length, float32 [E].

        The dot product of two embeddings is the similarity that contrastive training shaped.
        """
        query, _ = self._query(image, audio, text)
        if len(query) != 1:
            raise UserError("embed: give one of image, audio or text; embed them one at a time")
        return self.predictor.embed([query])[0]

    def _query(
        self, image: ImageInput | None, audio: AudioInput | None, text: str | None
    ) -> tuple[list[Part], list[str]]:
        return read_question(self.predictor.reader, self.config, image, audio, text)


def load(
    folder: str | PathLike[str],
    device: str = "cpu",
    *,
    dtype: str = "auto",
    verify: bool = True,
    plugins: Sequence[str] = (),
) -> TrainedModel:
    """Open a release made by ``mmscale export``.

    Args:
        device: where the model runs, such as ``cuda``.
        dtype: float32, bfloat16 or float16; auto: as the release holds them, which on the CPU are
            mapped, not copied.
        verify: hash all files first; False: only the small ones, so that a release of any size
            opens at once and its weights are read when they are used. Use it on a folder that
            `mmscale verify` has seen.
        plugins: modules to import first. A release that needs others is refused: what it names is
            never imported for that.

    Raises:
        UserError: the folder is no release, or is damaged or changed; a plug-in cannot be used, or
            was not named.
    """
    import_plugins(plugins)
    if dtype != "auto" and dtype not in WEIGHT_TYPES:
        raise UserError(f"dtype {dtype!r}: not one of auto, {', '.join(WEIGHT_TYPES)}")
    predictor, facts = load_release(Path(folder), device, WEIGHT_TYPES.get(dtype), verify)
    return TrainedModel(predictor, facts["step"])


def load_trained(folder: Path) -> TrainedModel:
    """A release, or a run's newest whole checkpoint. Raises `UserError` if the folder is neither,
    or is damaged.
    """
    if is_release(folder):
        return load(folder)
    config, tokenizer, checkpoint = open_run(folder)
    return TrainedModel(load_checkpoint(config, tokenizer, checkpoint), read_state(checkpoint).step)


def _decoding(keywords: dict[str, Any]) -> Decoding:
    known = [item.name for item in dataclasses.fields(Decoding)]
    unknown = keywords.keys() - set(known)
    if unknown:
        raise UserError(f"{min(unknown)!r} is no way to decode; there are {', '.join(known)}")
    return Decoding(**keywords)
