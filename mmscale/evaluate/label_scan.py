"""Training labels that stay out of line: which samples the model, having learned from them, still
contradicts.

A label that was exchanged, by mistake or to poison a model, stands against what all others teach,
and its loss stays high while theirs fall (area under the margin: Pleiss et al., 2020). A sample is
suspect if at *every* checkpoint that the run still has the model prefers another label and the loss
is an outlier among those of its label: a modified z-score above 3.5 (Iglewicz and Hoaglin, 1993).

What it cannot see: labels that the model has learned by heart (keep early checkpoints:
train.keep_last), and a backdoor whose trigger the model has learned, because there the poisoned
label is the one it prefers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmscale.checkpoint.run_folder import saved_names
from mmscale.checkpoint.stored_weights import StoredWeights, fill_from
from mmscale.config import EvalConfig, SetConfig, TaskConfig
from mmscale.data.index.dataset import Dataset
from mmscale.errors import UserError
from mmscale.evaluate.classify import label_scores, labels_of, longest_answer
from mmscale.evaluate.samples import EvalSample, EvalSamples
from mmscale.predict.predictor import Predictor

FILE = "suspects.jsonl"
_MOST_LABELS = 1000
_LEAST_SAMPLES_A_LABEL = 4  # on average; below, the target is no label but a text
_OUTLIER = 3.5
_NORMAL_MAD = 0.6745  # median absolute deviation of a standard normal
_MOST_SHOWN = 20


class LabelScan:
    """Scans every task whose target is a label.

    Args:
        predictor: the model; it ends with the newest weights.
        weights: the checkpoints of the run, oldest first; none: the predictor's own weights alone.
        ema: take the checkpoints' averaged weights.
        run_dir: where the list of all suspects is written; None: nowhere.
    """

    def __init__(
        self,
        predictor: Predictor,
        weights: Sequence[StoredWeights],
        ema: bool,
        run_dir: Path | None,
        progress: bool,
    ) -> None:
        self._predictor, self._weights = predictor, weights
        self._run_dir, self._progress = run_dir, progress
        self._names = saved_names(predictor.model, predictor.config, ema)

    def run(self) -> dict[str, tuple[EvalSamples, dict[str, Any]]]:
        """Of every scanned task its samples, ``suspects``, ``suspect_share``, ``checkpoints``; the
        worst ``listed``.

        A set whose shards are not on this machine is passed over.
        """
        suspects: dict[str, tuple[EvalSamples, list[dict[str, Any]]]] = {}
        for name, data_set in self._predictor.config.data.sets.items():
            for number, task in enumerate(data_set.tasks):
                samples = self._samples(f"labels of {name}, task {number}", data_set, task)
                if samples is not None:
                    suspects[samples.name] = samples, self._scan(samples)
        if self._run_dir is not None and suspects:
            lines = [{"task": name, **row} for name, (_, rows) in suspects.items() for row in rows]
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            (self._run_dir / FILE).write_text(text, encoding="utf-8")
        return {
            name: (
                samples,
                {
                    "suspects": len(rows),
                    "suspect_share": len(rows) / samples.used,
                    "checkpoints": max(1, len(self._weights)),
                    "listed": rows[:_MOST_SHOWN],
                },
            )
            for name, (samples, rows) in suspects.items()
        }

    def _samples(self, name: str, data_set: SetConfig, task: TaskConfig) -> EvalSamples | None:
        """The task's samples, or None where its target is no label."""
        if task.objective not in ("next_token", "classify") or not task.input:
            return None
        score = EvalConfig(
            task="classify",
            shards=data_set.shards,
            input=task.input,
            prompt=task.prompt,
            target=task.target,
            head=task.head_name() if task.objective == "classify" else "",
        )
        config = self._predictor.config
        try:
            dataset = Dataset.open(data_set.shards, config.data.cache)
            samples = EvalSamples(
                name=name,
                score=score,
                dataset=dataset,
                predictor=self._predictor,
                progress=self._progress,
                most=config.robustness.scan,
            )
            targets = samples.targets()
        except UserError:
            return None
        labels = len(set(targets))
        many = not 2 <= labels <= _MOST_LABELS or len(targets) < _LEAST_SAMPLES_A_LABEL * labels
        return None if many else samples

    def _scan(self, samples: EvalSamples) -> list[dict[str, Any]]:
        labels = labels_of(samples)
        facts: list[tuple[EvalSample, int]] = []  # sample and number of the given label
        losses, margins, preferred = [], [], []
        for number in range(max(1, len(self._weights))):
            if self._weights:
                parameters = self._predictor.model.named_parameters()
                own = {self._names[name]: parameter.data for name, parameter in parameters}
                fill_from(self._weights[number], own)
            facts, log_probs = self._read(samples, labels)
            given = np.array([number for _, number in facts])
            rows = np.arange(len(given))
            true = log_probs[rows, given]
            rivals = log_probs.copy()
            rivals[rows, given] = -np.inf
            losses.append(-true)
            margins.append(true - rivals.max(axis=1))
            preferred.append(rivals.argmax(axis=1))
        outlying = np.all([is_outlier(loss, given) for loss in losses], axis=0)
        suspects = np.flatnonzero(outlying & (np.array(margins) < 0).all(axis=0))
        mean_margin, mean_loss = np.mean(margins, axis=0), np.mean(losses, axis=0)
        order = suspects[np.argsort(mean_margin[suspects], kind="stable")]
        return [
            {
                "key": facts[at][0].key,
                "shard": facts[at][0].shard,
                "label": labels[given[at]],
                "model_prefers": labels[preferred[-1][at]],
                "loss": round(float(mean_loss[at]), 4),
                "margin": round(float(mean_margin[at]), 4),
            }
            for at in order.tolist()
        ]

    def _read(
        self, samples: EvalSamples, labels: Sequence[str]
    ) -> tuple[list[tuple[EvalSample, int]], NDArray[np.float64]]:
        """(sample and label of every sample; log-probabilities over the labels, float64 [samples,
        labels]).
        """
        number = {label: n for n, label in enumerate(labels)}
        samples.used = samples.skipped = samples.oversize = 0  # it is read once for each checkpoint
        facts: list[tuple[EvalSample, int]] = []
        parts = []
        for chunk in samples.chunks(longest_answer(self._predictor, samples.score, labels)):
            usable = [sample for sample in chunk if sample.answer in number]
            if not usable:
                continue
            scores = label_scores(
                self._predictor, samples.score, [sample.queries[0] for sample in usable], labels
            )
            wide = scores.astype(np.float64)
            parts.append(wide - np.logaddexp.reduce(wide, axis=1, keepdims=True))
            facts += [(sample, number[sample.answer]) for sample in usable]
        return facts, np.concatenate(parts)


def is_outlier(loss: NDArray[np.float64], label: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each loss stands far above those of its label, bool [n]."""
    out = np.zeros(len(loss), bool)
    for number in np.unique(label):
        at = np.flatnonzero(label == number)
        median = np.median(loss[at])
        deviation = np.median(np.abs(loss[at] - median))
        out[at] = _NORMAL_MAD * (loss[at] - median) > _OUTLIER * max(deviation, 1e-3)
    return out
