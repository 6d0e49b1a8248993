"""Scoring a run or a release on held-out shards, as the ``eval`` part of its config says."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmscale.checkpoint.run_folder import load_checkpoint, open_run, whole_checkpoints
from mmscale.checkpoint.run_state import list_checkpoints, read_state
from mmscale.checkpoint.score_file import write_scores
from mmscale.checkpoint.stored_weights import StoredWeights
from mmscale.config import EvalConfig
from mmscale.data.index.dataset import Dataset
from mmscale.errors import UserError
from mmscale.evaluate.classify import label_scores, labels_of, longest_answer
from mmscale.evaluate.label_scan import LabelScan
from mmscale.evaluate.normalise import normalised
from mmscale.evaluate.robustness import KIND, attacked
from mmscale.evaluate.samples import EvalSamples
from mmscale.evaluate.scores import (
    accuracy,
    character_error_rate,
    confusion,
    macro_f1,
    recall_at,
    word_error_rate,
)
from mmscale.predict.decoding import Decoding
from mmscale.predict.predictor import Predictor
from mmscale.release.open_release import is_release, load_release

_MOST_SHOWN_LABELS = 100  # a larger confusion matrix is left out of the result


def evaluate(
    target: Path,
    data: str | None = None,
    tasks: list[str] | None = None,
    progress: bool = True,
    ema: bool = False,
) -> dict[str, dict[str, Any]]:
    """Compute the scores of ``config.eval``.

    A sample whose fields cannot be read or decoded is left out and counted as ``skipped``. One that
    is longer than ``data.seq_len`` is left out and counted as ``oversize``. One that lacks a field
    is not counted.

    Args:
        target: a run directory (its newest whole checkpoint) or a release folder.
        data: shards that replace those of every score.
        tasks: names of scores, or kinds (classify, transcribe, retrieve); None: all of these.
            ``robustness`` attacks the classify scores instead and scans the training labels.
        progress: show bars on stderr.
        ema: of a run, score the moving averages of the weights.

    Returns:
        Per score ``task``, ``samples``, ``skipped``, ``oversize`` and, as shares of 1,

        - classify: ``accuracy``, ``macro_f1``, ``labels`` and, for up to 100 labels, ``confusion``:
          counts, row the truth, column the prediction;
        - transcribe: ``wer`` and ``cer`` (which may exceed 1), ``exact``, and ``normalise``, the
          text normaliser that they are of;
        - retrieve: ``recall@1``, ``recall@5``, ``recall@10``;
        - robustness: see `mmscale.evaluate.robustness`.

        For a run they are also written to ``scores.json``, with the digests of the data and the
        command.

    Raises:
        UserError: ``target`` is neither, a name is unknown, or shards are missing or lack the
            fields.
    """
    checkpoint: Path | None = None
    if is_release(target):
        predictor, _ = load_release(target)
    elif (target / "config.yaml").is_file():
        # Once: a run that continues may write a newer checkpoint meanwhile.
        config, tokenizer, checkpoint = open_run(target)
        predictor = load_checkpoint(config, tokenizer, checkpoint, ema)
    else:
        raise UserError(
            f"{target}: neither a run directory (config.yaml) nor a release (config.json of "
            "mmscale export)"
        )
    if torch.cuda.is_available():
        predictor.model.to("cuda")
    scored: dict[str, tuple[EvalSamples, dict[str, Any], str]] = {}
    for name, score in _choose(target, predictor.config.eval, tasks).items():
        samples = _open_samples(
            name=name, score=score, data=data, predictor=predictor, progress=progress
        )
        scored[name] = samples, _KINDS[score.task](samples), name
    if tasks is not None and KIND in tasks:
        for name, score in _attackable(target, predictor.config.eval).items():
            most = predictor.config.robustness.samples
            samples = _open_samples(
                name=name, score=score, data=data, predictor=predictor, progress=progress, most=most
            )
            scored[f"{name}, attacked"] = samples, attacked(samples), KIND
        weights = [StoredWeights(path) for path in _kept(checkpoint)] if checkpoint else []
        scan = LabelScan(
            predictor, weights, ema, target if checkpoint and not ema else None, progress
        )
        scored |= {name: (samples, result, KIND) for name, (samples, result) in scan.run().items()}
    results: dict[str, dict[str, Any]] = {}
    entries: dict[str, dict[str, Any]] = {}
    for name, (samples, result, wanted) in scored.items():
        kind = KIND if wanted == KIND else samples.score.task
        results[name] = {"task": kind, "samples": samples.used, **samples.left_out(), **result}
        entries[name] = {
            "scores": results[name],
            "shards": samples.score.shards,
            "digests": samples.dataset.digests,
            "command": _command(target, data, wanted, predictor.config.plugins),
        }
    # The model card shows the scores of the weights that are exported by default.
    if checkpoint and not ema:
        write_scores(target, read_state(checkpoint).step, entries)
    return results


def _kept(newest: Path) -> list[Path]:
    """Whole checkpoints of a run up to the ``newest``, which was looked at, oldest first."""
    older = [path for path in list_checkpoints(newest.parent) if path.name < newest.name]
    return [*whole_checkpoints(older), newest]


def _open_samples(
    *,
    name: str,
    score: EvalConfig,
    data: str | None,
    predictor: Predictor,
    progress: bool,
    most: int = 0,
) -> EvalSamples:
    score = replace(score, shards=[data] if data is not None else score.shards)
    if not score.shards:
        raise UserError(f"eval.{name}.shards: empty; name held-out shards there, or give --data")
    dataset = Dataset.open(score.shards, predictor.config.data.cache)
    return EvalSamples(
        name=name, score=score, dataset=dataset, predictor=predictor, progress=progress, most=most
    )


def format_table(scores: dict[str, dict[str, Any]]) -> str:
    """The scores as aligned lines for a terminal."""
    rows = [("score", "kind", "samples", "left out", "result")]
    for name, entry in scores.items():
        left_out = entry.get("skipped", 0) + entry.get("oversize", 0)
        result = "  ".join(
            f"{key} {value:.3f}" for key, value in entry.items() if isinstance(value, float)
        )
        rows.append((name, entry["task"], str(entry["samples"]), str(left_out), result))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join(lines)


def _classify(samples: EvalSamples) -> dict[str, Any]:
    predictor, score = samples.predictor, samples.score
    labels = labels_of(samples)
    truth: list[str] = []
    predicted: list[str] = []
    for chunk in samples.chunks(longest_answer(predictor, score, labels)):
        scores = label_scores(predictor, score, [sample.queries[0] for sample in chunk], labels)
        predicted += [labels[best] for best in scores.argmax(axis=1).tolist()]
        truth += [sample.answer for sample in chunk]
    shown = [*dict.fromkeys(labels), *sorted(set(truth) - set(labels))]
    counts = confusion(truth, predicted, shown)
    out: dict[str, Any] = {
        "accuracy": accuracy(truth, predicted),
        "macro_f1": macro_f1(counts),
        "labels": shown,
    }
    if len(shown) <= _MOST_SHOWN_LABELS:
        out["confusion"] = counts.tolist()
    return out


def _transcribe(samples: EvalSamples) -> dict[str, Any]:
    score = samples.score
    decoding = Decoding(max_new_tokens=score.max_new_tokens, beams=score.beams)
    truth: list[str] = []
    predicted: list[str] = []
    for chunk in samples.chunks():
        queries = [sample.queries[0] for sample in chunk]
        if score.decoder == "ctc":
            predicted += samples.predictor.spell(queries, score.beams)
        else:
            assert score.decoder == "answer", f"decoder {score.decoder!r}: unknown"
            predicted += samples.predictor.generate(queries, score.prompt, decoding)
        truth += [sample.answer for sample in chunk]
    truth, predicted = (normalised(score.normalise, texts) for texts in (truth, predicted))
    return {
        "normalise": score.normalise,
        "wer": word_error_rate(truth, predicted),
        "cer": character_error_rate(truth, predicted),
        "exact": accuracy(truth, predicted),
    }


def _retrieve(samples: EvalSamples) -> dict[str, Any]:
    """Every sample is a query and, by its other field, a candidate."""
    score = samples.score
    same = score.query == score.candidates
    if same and not score.match:
        raise UserError(
            f"eval.{samples.name}.match: needed where query and candidates are the same field"
        )
    embeddings: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]] = ([], [])
    match: list[str] = []
    for chunk in samples.chunks():
        for side, parts in enumerate(embeddings):
            parts.append(samples.predictor.embed([sample.queries[side] for sample in chunk]))
        match += [sample.answer for sample in chunk]
    query, candidate = (np.concatenate(parts) for parts in embeddings)
    return dict(recall_at(query, candidate, match, match, leave_out_own=same))


_KINDS = {"classify": _classify, "transcribe": _transcribe, "retrieve": _retrieve}


def _choose(
    target: Path, entries: dict[str, EvalConfig], tasks: list[str] | None
) -> dict[str, EvalConfig]:
    if not entries:
        raise UserError(
            f"{target}: its config has no scores; add an entry under eval before training"
        )
    if tasks is None:
        return entries
    kinds = {*(score.task for score in entries.values()), KIND}
    for wanted in tasks:
        if wanted not in entries and wanted not in kinds:
            known = f"there are {', '.join(entries)} (kinds: {', '.join(sorted(kinds))})"
            raise UserError(f"--task {wanted}: unknown; {known}")
    return {name: score for name, score in entries.items() if name in tasks or score.task in tasks}


def _attackable(target: Path, entries: dict[str, EvalConfig]) -> dict[str, EvalConfig]:
    attackable = {name: score for name, score in entries.items() if score.task == "classify"}
    if not attackable:
        raise UserError(
            f"{target}: --task {KIND} attacks classify scores, and its config has none; add one "
            "under eval"
        )
    return attackable


def _command(target: Path, data: str | None, name: str, plugins: list[str]) -> str:
    parts = ["mmscale", "eval", str(target)]
    for plugin in plugins:
        parts += ["--plugin", plugin]
    if data is not None:
        parts += ["--data", data]
    return shlex.join([*parts, "--task", name])
