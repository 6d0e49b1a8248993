"""Choosing among labels, as a classify score does it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmscale.config import EvalConfig
from mmscale.errors import UserError
from mmscale.evaluate.samples import EvalSamples
from mmscale.predict.predictor import Predictor
from mmscale.predict.query import Query


def labels_of(samples: EvalSamples) -> list[str]:
    """The answers to choose from. Raises `UserError` if they are no sample's answer."""
    targets = set(samples.targets())
    score = samples.score
    labels = (
        score.labels or samples.predictor.config.model.classes.get(score.head) or sorted(targets)
    )
    if not targets:
        raise UserError(f"eval.{samples.name}.target: no sample has {score.target}")
    if not targets & set(labels):
        raise UserError(
            f"eval.{samples.name}.labels: no sample's {score.target} is one of them; "
            f"leave labels empty to use the {len(targets)} targets of the shards"
        )
    return labels


def longest_answer(predictor: Predictor, score: EvalConfig, labels: Sequence[str]) -> int:
    """Tokens of the longest label; 0 for a linear head, which writes nothing."""
    if score.head:
        return 0
    return max(len(predictor.tokenizer.encode(label)) for label in labels)


def label_scores(
    predictor: Predictor, score: EvalConfig, queries: Sequence[Query], labels: Sequence[str]
) -> NDArray[np.float32]:
    """Scores of ``labels``, float32 [queries, labels], by the score's linear head or by the
    answers' likelihood.
    """
    if score.head:
        return predictor.class_scores(queries, score.prompt, score.head)
    return predictor.label_scores(queries, score.prompt, labels)
