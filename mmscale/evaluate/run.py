"""Scoring a run or a release on held-out shards, as the ``eval`` part of its config says."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from mmscale.checkpoint.open_release import is_release, load_release
from mmscale.checkpoint.run_folder import load_run, open_run
from mmscale.checkpoint.score_file import write_scores
from mmscale.checkpoint.store import read_state
from mmscale.config import EvalConfig
from mmscale.data.corpus import Corpus
from mmscale.errors import SampleFault, UserError
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
from mmscale.predict.query import Part

_CHUNK = 256  # samples decoded before they are scored together
_MOST_SHOWN_LABELS = 100  # a larger confusion matrix is left out of the result


def evaluate(
    target: Path,
    data: str | None = None,
    tasks: list[str] | None = None,
    progress: bool = True,
    ema: bool = False,
) -> dict[str, dict[str, Any]]:
    """Compute the scores of ``config.eval``.

    A sample whose fields cannot be read or decoded is left out and counted as ``skipped``; one that is longer
    than ``data.seq_len`` is left out and counted as ``oversize``; one that lacks a field is not counted.

    Args:
        target: a run directory (its newest checkpoint) or a release folder.
        data: shards that replace those of every score.
        tasks: names of scores, or kinds (classify, transcribe, retrieve); None: all.
        progress: show bars on stderr.
        ema: of a run, score the moving averages of the weights.

    Returns:
        Per score ``task``, ``samples``, ``skipped``, ``oversize`` and, as shares of 1,

        - classify: ``accuracy``, ``macro_f1``, ``labels`` and, for up to 100 labels, ``confusion``: counts,
          row the truth, column the prediction;
        - transcribe: ``wer`` and ``cer`` (which may exceed 1), ``exact``;
        - retrieve: ``recall@1``, ``recall@5``, ``recall@10``.

        For a run they are also written to ``scores.json``, with the digests of the data and the command.

    Raises:
        UserError: ``target`` is neither, a name is unknown, or shards are missing or lack the fields.
    """
    release = is_release(target)
    if release:
        predictor, _ = load_release(target)
    elif (target / "config.yaml").is_file():
        _, _, checkpoint = open_run(target)  # once: a run that goes on may write a newer one meanwhile
        predictor, _ = load_run(target, checkpoint, ema)
    else:
        raise UserError(
            f"{target}: neither a run directory (config.yaml) nor a release (config.json of mmscale export)"
        )
    if torch.cuda.is_available():
        predictor.model.to("cuda")
    chosen = _choose(target, predictor.config.eval, tasks)
    results: dict[str, dict[str, Any]] = {}
    entries: dict[str, dict[str, Any]] = {}
    for name, score in chosen.items():
        score = replace(score, shards=[data] if data is not None else score.shards)
        if not score.shards:
            raise UserError(f"eval.{name}.shards: empty; name held-out shards there, or give --data")
        corpus = Corpus.open(score.shards, predictor.config.data.cache)
        samples = _Samples(name, score, corpus, predictor, progress)
        found = _KINDS[score.task](samples)
        left_out = {"skipped": samples.skipped, "oversize": samples.oversize}
        results[name] = {"task": score.task, "samples": samples.used, **left_out, **found}
        entries[name] = {
            "scores": results[name],
            "shards": score.shards,
            "digests": samples.corpus.digests,
            "command": _command(target, data, name),
        }
    if not release and not ema:  # the model card tells the scores of the weights that are exported by default
        write_scores(target, read_state(checkpoint).step, entries)
    return results


def format_table(scores: dict[str, dict[str, Any]]) -> str:
    """The scores as aligned lines for a terminal."""
    rows = [("score", "kind", "samples", "left out", "result")]
    for name, found in scores.items():
        left_out = found.get("skipped", 0) + found.get("oversize", 0)
        result = "  ".join(f"{key} {value:.3f}" for key, value in found.items() if isinstance(value, float))
        rows.append((name, found["task"], str(found["samples"]), str(left_out), result))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return "\n".join(lines)


@dataclass
class _Sample:
    """What a score needs of one sample."""

    key: str
    queries: list[list[Part]]  # one for an answer, two for retrieval (query, candidate)
    answer: str  # the true answer, or the value to match


@dataclass
class _Samples:
    """The usable samples of a score's shards, read in order; counts what it leaves out."""

    name: str
    score: EvalConfig
    corpus: Corpus
    predictor: Predictor
    progress: bool
    used: int = 0
    skipped: int = 0
    oversize: int = 0
    labels: list[str] = field(default_factory=list)

    def chunks(self, longest_answer: int = 0) -> Iterator[list[_Sample]]:
        """Up to `_CHUNK` decoded samples at a time; ``longest_answer`` tokens must fit behind the query.

        Raises `UserError` if no sample has the fields or none could be used.
        """
        chunk: list[_Sample] = []
        for sample in tqdm(self._present(), desc=self.name, unit="sample", disable=not self.progress):
            try:
                made = self._read(sample)
            except SampleFault:
                self.skipped += 1
                continue
            if made is None:
                continue
            length = max(self.predictor.query_tokens(query, self.score.prompt) for query in made.queries)
            if length + longest_answer > self.predictor.config.data.seq_len:
                self.oversize += 1
                continue
            self.used += 1
            chunk.append(made)
            if len(chunk) == _CHUNK:
                yield chunk
                chunk = []
        if chunk:
            yield chunk
        if not self.used:
            raise UserError(
                f"eval.{self.name}: no sample of {', '.join(self.score.shards)} can be used "
                f"({self.skipped} broken, {self.oversize} longer than data.seq_len); give other shards"
            )

    def targets(self) -> set[str]:
        """Every readable target, without decoding anything else."""
        found: set[str] = set()
        for sample in self._present():
            try:
                text = self.corpus.text(self.score.target, sample)
            except SampleFault:
                continue  # it is counted when the sample is read whole
            if text is not None:
                found.add(text)
        return found

    def _present(self) -> list[int]:
        """Samples whose index has every field the score reads."""
        fields = self.score.fields()
        has = np.ones(len(self.corpus), dtype=bool)
        for name in fields:
            has &= self.corpus.facts(name, np.arange(len(self.corpus)))["offset"] > 0
        if not has.any():
            raise UserError(
                f"eval.{self.name}: no sample of {', '.join(self.score.shards)} has the fields "
                f"{', '.join(fields)}; correct the fields or give other shards"
            )
        found: list[int] = np.nonzero(has)[0].tolist()
        return found

    def _read(self, sample: int) -> _Sample | None:
        """The sample decoded; None if its JSON lacks a field. Raises `SampleFault` if it is broken."""
        score, corpus, reader = self.score, self.corpus, self.predictor.reader
        asked = [[score.query], [score.candidates]] if score.task == "retrieve" else [score.input]
        queries = []
        for fields in asked:
            query = reader.query(corpus, fields, sample)
            if query is None:
                return None
            queries.append(query)
        key = corpus.key(sample)
        wanted = score.match if score.task == "retrieve" else score.target
        answer = corpus.text(wanted, sample) if wanted else key
        return None if answer is None else _Sample(key, queries, answer)


def _classify(samples: _Samples) -> dict[str, Any]:
    predictor, score = samples.predictor, samples.score
    targets = samples.targets()
    labels = score.labels or predictor.config.model.classes.get(score.head) or sorted(targets)
    if not targets & set(labels):
        raise UserError(
            f"eval.{samples.name}.labels: no sample's {score.target} is one of them; "
            f"leave labels empty to use the {len(targets)} targets of the shards"
        )
    longest = max(len(predictor.tokenizer.encode(label)) for label in labels)
    truth: list[str] = []
    predicted: list[str] = []
    for chunk in samples.chunks(longest):
        queries = [one.queries[0] for one in chunk]
        if score.head:
            scores = predictor.class_scores(queries, score.prompt, score.head)
        else:
            scores = predictor.label_scores(queries, score.prompt, labels)
        predicted += [labels[best] for best in scores.argmax(axis=1).tolist()]
        truth += [one.answer for one in chunk]
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


def _transcribe(samples: _Samples) -> dict[str, Any]:
    score = samples.score
    decoding = Decoding(max_new_tokens=score.max_new_tokens, beams=score.beams)
    truth: list[str] = []
    predicted: list[str] = []
    for chunk in samples.chunks():
        queries = [one.queries[0] for one in chunk]
        if score.decoder == "ctc":
            predicted += samples.predictor.spell(queries, score.beams)
        else:
            predicted += samples.predictor.generate(queries, score.prompt, decoding)
        truth += [one.answer for one in chunk]
    exact = accuracy(
        [" ".join(text.split()) for text in truth], [" ".join(text.split()) for text in predicted]
    )
    return {
        "wer": word_error_rate(truth, predicted),
        "cer": character_error_rate(truth, predicted),
        "exact": exact,
    }


def _retrieve(samples: _Samples) -> dict[str, Any]:
    """Every sample is a query and, by its other field, a candidate."""
    score = samples.score
    same = score.query == score.candidates
    if same and not score.match:
        raise UserError(f"eval.{samples.name}.match: needed where query and candidates are the same field")
    embeddings: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]] = ([], [])
    match: list[str] = []
    for chunk in samples.chunks():
        for side, found in enumerate(embeddings):
            found.append(samples.predictor.embed([one.queries[side] for one in chunk]))
        match += [one.answer for one in chunk]
    query, candidate = (np.concatenate(found) for found in embeddings)
    return dict(recall_at(query, candidate, match, match, leave_out_own=same))


_KINDS = {"classify": _classify, "transcribe": _transcribe, "retrieve": _retrieve}


def _choose(target: Path, entries: dict[str, EvalConfig], tasks: list[str] | None) -> dict[str, EvalConfig]:
    if not entries:
        raise UserError(f"{target}: its config has no scores; add an entry under eval before training")
    if tasks is None:
        return entries
    for wanted in tasks:
        if wanted not in entries and all(score.task != wanted for score in entries.values()):
            kinds = ", ".join(sorted({score.task for score in entries.values()}))
            raise UserError(f"--task {wanted}: unknown; there are {', '.join(entries)} (kinds: {kinds})")
    return {name: score for name, score in entries.items() if name in tasks or score.task in tasks}


def _command(target: Path, data: str | None, name: str) -> str:
    parts = ["mmscale", "eval", str(target)]
    if data is not None:
        parts += ["--data", data]
    return shlex.join([*parts, "--task", name])
