"""Accuracy under attack: the worst picture or clip nearby (PGD), and typing errors.

What is measured is the *worst case*: a sample counts as right if the model is right on it as it is
and under attack. A model that is right under this attack may yet fail another one: the figures are
upper bounds of robustness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmscale import prf
from mmscale.batch import Batch
from mmscale.config import EvalConfig
from mmscale.data.loading.batch_builder import BatchBuilder
from mmscale.data.objectives.classify import add_class
from mmscale.data.objectives.next_token import add_targets
from mmscale.data.special_tokens import ANSWER, END
from mmscale.evaluate.classify import label_scores, labels_of, longest_answer
from mmscale.evaluate.samples import EvalSample, EvalSamples
from mmscale.evaluate.text_noise import with_typing_errors
from mmscale.model.attack import Budget, ItemKeys, attack, first_places
from mmscale.predict.predictor import Predictor
from mmscale.predict.query import Clip, Part, Picture, Query, Text, count_tokens, lay_query

KIND = "robustness"
_POSITIONS = 4096  # of one gradient pass, about


def attacked(samples: EvalSamples) -> dict[str, Any]:
    """Scores of one classify score under attack, as ``config.robustness`` says.

    Returns:
        ``accuracy`` as the samples are; ``accuracy_pgd`` where they have pictures or clips;
        ``accuracy_typing_errors`` where they have texts; ``budget``, a line for people.
    """
    predictor, score = samples.predictor, samples.score
    config = predictor.config.robustness
    labels = labels_of(samples)
    longest = longest_answer(predictor, score, labels)
    budget = Budget(config.image, config.audio, config.steps)
    right: dict[str, list[bool]] = {}

    def judge(name: str, chunk: Sequence[EvalSample], queries: Sequence[Query]) -> None:
        scores = label_scores(predictor, score, queries, labels)
        hits = [
            labels[best] == sample.answer
            for best, sample in zip(scores.argmax(axis=1).tolist(), chunk, strict=True)
        ]
        right.setdefault(name, []).extend(hits)

    kinds: set[type] = set()
    for chunk in samples.chunks(longest):
        queries = [sample.queries[0] for sample in chunk]
        kinds |= {type(part) for query in queries for part in query}
        judge("accuracy", chunk, queries)
        if kinds & {Picture, Clip}:
            judge("accuracy_pgd", chunk, attack_queries(predictor, score, chunk, labels, budget))
        if Text in kinds:
            noisy = [
                _mistyped(predictor, score, sample, config.characters, longest) for sample in chunk
            ]
            judge("accuracy_typing_errors", chunk, noisy)
    plain = np.array(right["accuracy"])
    result: dict[str, Any] = {
        name: float((plain & np.array(hits)).mean()) for name, hits in right.items()
    }
    limits = []
    if Picture in kinds:
        limits.append(f"pictures within {config.image:g}/255")
    if Clip in kinds:
        limits.append(f"log-mel within {config.audio:g}")
    if limits:
        limits.append(f"{config.steps} steps")
    if Text in kinds:
        limits.append(f"{config.characters:.0%} of characters")
    return result | {"budget": ", ".join(limits)}


def attack_queries(
    predictor: Predictor,
    score: EvalConfig,
    chunk: Sequence[EvalSample],
    labels: Sequence[str],
    budget: Budget,
) -> list[list[Part]]:
    """The samples' queries with pictures and clips that make the true answer unlikely; pixels stay
    whole numbers.

    Samples whose true answer is none of ``labels`` cannot be right and stay as they are.
    """
    queries = [list(sample.queries[0]) for sample in chunk]
    known = set(labels)
    rows = [row for row, sample in enumerate(chunk) if sample.answer in known]
    lengths = [
        predictor.query_tokens(queries[row], score.prompt)
        + len(predictor.tokenizer.encode(chunk[row].answer))
        for row in range(len(chunk))
    ]
    rows.sort(key=lambda row: -lengths[row])
    while rows:
        most = max(1, _POSITIONS // lengths[rows[0]])
        group, rows = rows[:most], rows[most:]
        changed = _attack_rows(
            predictor=predictor,
            score=score,
            group=[chunk[row] for row in group],
            labels=labels,
            budget=budget,
            length=lengths[group[0]],
        )
        for row, query in zip(group, changed, strict=True):
            queries[row] = query
    return queries


def _attack_rows(
    *,
    predictor: Predictor,
    score: EvalConfig,
    group: Sequence[EvalSample],
    labels: Sequence[str],
    budget: Budget,
    length: int,
) -> list[list[Part]]:
    """One query in each sequence of a batch that is taught its true answer, and the batch
    attacked.
    """
    media, model = predictor.config.media, predictor.model
    builder = BatchBuilder(len(group), length, media)
    head = sorted(predictor.config.model.classes).index(score.head) if score.head else 0
    prompt = np.array([*predictor.tokenizer.encode(score.prompt), ANSWER], np.int64)
    for sample in group:
        builder.open_sequence()
        last = lay_query(builder, [*sample.queries[0], Text(prompt)])
        if score.head:
            number = labels.index(sample.answer)
            add_class(builder, last, head=head, classes=(number, number), share=1.0, weight=1.0)
        else:
            ids = np.array(predictor.tokenizer.encode(sample.answer), np.int64)
            at = builder.add_text(ids)
            add_targets(builder, np.append(last, at), np.append(ids, END), 1.0)
    batch = builder.finish().to(predictor.device)
    owners = [_owners(places.tolist(), length) for places in first_places(batch, media)]
    keys = [
        [_key(predictor, score, group[row], kind, nth) for row, nth in owned]
        for kind, owned in zip(("image", "audio"), owners, strict=True)
    ]
    items = ItemKeys(keys[0], keys[1], [True] * len(keys[0]), [True] * len(keys[1]))

    def gradients(changed: Batch) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            losses = model(changed)
            total = losses["next_token"] + losses["classify"]
            media_inputs = (changed.image_N3HW, changed.audio_NFM)
            return torch.autograd.grad(total, media_inputs)  # type: ignore[return-value]

    worse = attack(batch, media, budget, items, gradients)
    images, clips = ({owner: number for number, owner in enumerate(owned)} for owned in owners)
    out: list[list[Part]] = []
    for row, sample in enumerate(group):
        parts: list[Part] = []
        nth = {Picture: 0, Clip: 0, Text: 0}
        for part in sample.queries[0]:
            if isinstance(part, Picture):
                parts.append(_whole_numbers(part, worse.image_N3HW[images[row, nth[Picture]]]))
            elif isinstance(part, Clip):
                mel = worse.audio_NFM[clips[row, nth[Clip]], : len(part.mel)]
                parts.append(Clip(mel.cpu().numpy()))
            else:
                parts.append(part)
            nth[type(part)] += 1
        out.append(parts)
    return out


def _owners(first_N: list[int], length: int) -> list[tuple[int, int]]:
    """(row, place among the row's own items) of every item, from the flat positions of their first
    tokens.
    """
    out = [(0, 0)] * len(first_N)
    counts: dict[int, int] = {}
    for number in sorted(range(len(first_N)), key=first_N.__getitem__):
        row = first_N[number] // length
        out[number] = row, counts.get(row, 0)
        counts[row] = counts.get(row, 0) + 1
    return out


def _whole_numbers(part: Picture, changed_3HW: Tensor) -> Picture:
    """The changed picture, its changes rounded towards 0, so that it is not further away than was
    allowed.
    """
    height, width = part.pixels.shape[1:]
    change = changed_3HW[:, :height, :width].cpu().numpy() - part.pixels.astype(np.float32)
    return Picture((part.pixels + np.trunc(change.round(3))).astype(np.uint8))


def _mistyped(
    predictor: Predictor, score: EvalConfig, sample: EvalSample, share: float, longest: int
) -> list[Part]:
    """The query with typing errors in its texts, cut where it would no longer fit."""
    out: list[Part] = []
    for nth, part in enumerate(sample.queries[0]):
        if isinstance(part, Text):
            text = predictor.tokenizer.decode(part.ids.tolist())
            wrong = with_typing_errors(text, share, _key(predictor, score, sample, "text", nth))
            part = replace(part, ids=np.array(predictor.tokenizer.encode(wrong), np.int64))
        out.append(part)
    room = predictor.config.data.seq_len - longest - predictor.query_tokens([], score.prompt)
    over = count_tokens(out, predictor.config.media) - room
    for nth, part in enumerate(out):
        if over > 0 and isinstance(part, Text):
            kept = max(1, len(part.ids) - over)
            over -= len(part.ids) - kept
            out[nth] = replace(part, ids=part.ids[:kept])
    return out


def _key(predictor: Predictor, score: EvalConfig, sample: EvalSample, kind: str, nth: int) -> int:
    of = (sample.shard, sample.key, kind, nth)
    return prf.derive_key(predictor.config.seed, "robustness", score.target, *of)
