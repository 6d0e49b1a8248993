"""The usable samples of held-out or training shards, read and decoded in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from mmscale import prf
from mmscale.config import BY_KEY, EvalConfig
from mmscale.data.index.dataset import Dataset
from mmscale.errors import SampleFault, UserError
from mmscale.predict.predictor import Predictor
from mmscale.predict.query import Part

_CHUNK = 256  # samples decoded before they are scored together


@dataclass
class EvalSample:
    """What a score needs of one sample."""

    key: str
    shard: str  # that holds it: other shards may have a sample of the same key
    queries: list[list[Part]]  # one for an answer, two for retrieval (query, candidate)
    answer: str  # the true answer, or the value to match


@dataclass(kw_only=True)
class EvalSamples:
    """The usable samples of a score's shards, read in order; counts what it leaves out.

    ``most`` samples at most, drawn by the run's seed; 0: all.
    """

    name: str
    score: EvalConfig
    dataset: Dataset
    predictor: Predictor
    progress: bool
    most: int = 0
    used: int = 0
    skipped: int = 0
    oversize: int = 0

    def chunks(self, longest_answer: int = 0) -> Iterator[list[EvalSample]]:
        """Up to `_CHUNK` decoded samples at a time; ``longest_answer`` tokens must fit behind the
        query.

        Raises `UserError` if no sample has the fields or none could be used.
        """
        chunk: list[EvalSample] = []
        for sample in tqdm(
            self._present(), desc=self.name, unit="sample", disable=not self.progress
        ):
            try:
                decoded = self._read(sample)
            except SampleFault:
                self.skipped += 1
                continue
            if decoded is None:
                continue
            length = max(
                self.predictor.query_tokens(query, self.score.prompt) for query in decoded.queries
            )
            if length + longest_answer > self.predictor.config.data.seq_len:
                self.oversize += 1
                continue
            self.used += 1
            chunk.append(decoded)
            if len(chunk) == _CHUNK:
                yield chunk
                chunk = []
        if chunk:
            yield chunk
        if not self.used:
            raise UserError(
                f"eval.{self.name}: no sample of {', '.join(self.score.shards)} can be used "
                f"({self.skipped} broken, {self.oversize} longer than data.seq_len); give other "
                "shards"
            )

    def targets(self) -> list[str]:
        """Every readable target, one for each sample, without decoding anything else."""
        texts: list[str] = []
        for sample in self._having_fields():
            try:
                text = self.dataset.text(self.score.target, sample)
            except SampleFault:
                continue  # it is counted when the sample is read whole
            if text is not None:
                texts.append(text)
        return texts

    def left_out(self) -> dict[str, int]:
        """What was not used, and why."""
        return {"skipped": self.skipped, "oversize": self.oversize}

    def _present(self) -> list[int]:
        present = self._having_fields()
        if not self.most or len(present) <= self.most:
            return present
        key = prf.derive_key(self.predictor.config.seed, "evaluated samples", self.name)
        chosen = prf.Permutation(key, len(present))(np.arange(self.most))
        return [present[at] for at in sorted(chosen.tolist())]

    def _having_fields(self) -> list[int]:
        """Samples whose index has every field the score reads."""
        fields = self.score.fields()
        has = np.ones(len(self.dataset), dtype=bool)
        for name in fields:
            has &= self.dataset.facts(name, np.arange(len(self.dataset)))["offset"] > 0
        if not has.any():
            raise UserError(
                f"eval.{self.name}: no sample of {', '.join(self.score.shards)} has the fields "
                f"{', '.join(fields)}; correct the fields or give other shards"
            )
        samples: list[int] = np.nonzero(has)[0].tolist()
        return samples

    def _read(self, sample: int) -> EvalSample | None:
        """The sample decoded; None if its JSON lacks a field. Raises `SampleFault` if it is
        broken.
        """
        score, dataset, reader = self.score, self.dataset, self.predictor.reader
        sides = [[score.query], [score.candidates]] if score.task == "retrieve" else [score.input]
        queries = []
        for fields in sides:
            query = reader.query(dataset, fields, sample)
            if query is None:
                return None
            queries.append(query)
        key = dataset.key(sample)
        wanted = score.match if score.task == "retrieve" else score.target
        if not wanted:
            answer: str | None = str(sample)  # no other sample's
        elif wanted == BY_KEY and score.task == "retrieve":
            answer = key
        else:
            answer = dataset.text(wanted, sample)
        return None if answer is None else EvalSample(key, dataset.shard(sample), queries, answer)
