"""Asking a trained model: scores of labels, answers, transcripts, embeddings. Batched; knows
nothing of files.

Shape suffixes: B sequences, L positions, D model width, E embedding width, R rows, K nodes of a
label tree, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmscale.batch import Batch
from mmscale.config import Config
from mmscale.data.loading.batch_builder import BatchBuilder
from mmscale.data.objectives.ctc import add_transcript
from mmscale.data.planning.packing import best_fit
from mmscale.data.special_tokens import ANSWER, EMBED, END, SPECIAL_TOKENS
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError
from mmscale.model.attention import make_plan
from mmscale.model.fusion import FusionTransformer
from mmscale.model.objectives.ctc import BLANK
from mmscale.predict.ctc_decode import beam_ctc, greedy_ctc
from mmscale.predict.decoding import Choices, Decoding
from mmscale.predict.generate import Generator, Hypothesis
from mmscale.predict.label_tree import LabelTree, build_trees
from mmscale.predict.query import PartReader, Query, Text, count_tokens, lay_query

_FORWARD_TOKENS = 8192  # positions of one forward pass, about
_TREE_NODES = 256  # beyond this, masked pairs of nodes cost more than reading the query again
# Rows of one forward pass are at least this share of the longest, or within 8 positions.
_ROW_SLACK = 0.8
_GREEDY = Decoding()
_LOGIT_ELEMENTS = 1 << 25  # float32 logits that exist at once


class Predictor:
    """A model in evaluation mode, with its tokenizer and the config it was trained with.

    A *query* is an ordered list of parts (see `mmscale.predict.query`); `reader` makes parts.
    Results do not depend on which queries share a call, beyond floating-point rounding.
    """

    def __init__(self, model: FusionTransformer, tokenizer: Tokenizer, config: Config) -> None:
        self.model, self.tokenizer, self.config = model.eval(), tokenizer, config
        self.reader = PartReader(config.media, tokenizer)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.model.embedding.weight.device

    def query_tokens(self, query: Query, prompt: str = "") -> int:
        """Positions of a query with its prompt and the closing <|answer|> or <|embed|>."""
        return count_tokens(query, self.config.media) + len(self.tokenizer.encode(prompt)) + 1

    @torch.inference_mode()
    def label_scores(
        self, queries: Sequence[Query], prompt: str, labels: Sequence[str]
    ) -> NDArray[np.float32]:
        """Log-likelihood of every label as the whole answer, float32 [queries, labels], in nats.

        The sum over the label's tokens and the closing <|end|> of their log-probabilities given the
        query. Exact: every label is scored, in one pass over each query (see `label_tree`).

        Raises:
            UserError: a query with its longest label is longer than ``data.seq_len``.
        """
        ids = [self.tokenizer.encode(label) for label in labels]
        segments = self._closed(queries, prompt, ANSWER)
        lengths = np.array(
            [count_tokens(segment, self.config.media) for segment in segments], np.int64
        )
        self._check_lengths(lengths + max(map(len, ids), default=0))
        scores = np.zeros((len(segments), len(ids)), np.float32)
        if self.config.model.fusion == "rnn":  # a tree needs attention
            for column, label in enumerate(ids):
                scores[:, column] = self._answer_scores(segments, label)
            return scores
        for tree in build_trees(ids, _TREE_NODES):
            for rows in _rows_of_like_length(lengths, len(tree.tokens)):
                scores[rows[:, None], tree.labels] = self._tree_scores(
                    [segments[row] for row in rows], tree
                )
        return scores

    @torch.inference_mode()
    def generate(
        self, queries: Sequence[Query], prompt: str, decoding: Decoding = _GREEDY
    ) -> list[str]:
        """The best answer to every query; see `hypotheses`."""
        return [
            self.tokenizer.decode(hypotheses[0].ids)
            for hypotheses in self.hypotheses(queries, prompt, decoding)
        ]

    @torch.inference_mode()
    def hypotheses(
        self, queries: Sequence[Query], prompt: str, decoding: Decoding = _GREEDY
    ) -> list[list[Hypothesis]]:
        """Answers to every query, the best first: one, or as many as there are beams.

        An answer ends with <|end|>, after ``max_new_tokens``, or where the query and it fill
        ``data.seq_len``. Tokens that are no text (special tokens but <|end|>, rows that only round
        up the vocabulary) are never chosen.

        Raises:
            UserError: a query is longer than ``data.seq_len``, or ``decoding`` cannot be.
        """
        decoding.check()
        segments = self._closed(queries, prompt, ANSWER)
        lengths = np.array(
            [count_tokens(segment, self.config.media) for segment in segments], np.int64
        )
        choices = None
        if decoding.labels is not None:
            labels = [self.tokenizer.encode(label) for label in decoding.labels]
            choices = Choices(labels, END)
            # A label is never cut short.
            decoding = replace(decoding, max_new_tokens=max(len(ids) for ids in labels) + 1)
            self._check_lengths(lengths + decoding.max_new_tokens - 1)
        self._check_lengths(lengths)
        generator = Generator(self.model, self._text_tokens(), END, decoding, choices)
        rooms = np.minimum(decoding.max_new_tokens, self.config.data.seq_len - lengths + 1)
        answers: list[list[Hypothesis]] = [[] for _ in segments]
        for rows in _rows_of_like_length(
            lengths, int(rooms.max(initial=0)), _FORWARD_TOKENS // decoding.beams
        ):
            builder = BatchBuilder(len(rows), int(lengths[rows].max()), self.config.media)
            for row in rows.tolist():
                builder.open_sequence()
                lay_query(builder, segments[row])
            batch = builder.finish().to(self.device)
            for row, best in zip(
                rows.tolist(),
                generator.answer(batch, rows.tolist(), rooms[rows].tolist()),
                strict=True,
            ):
                answers[row] = best
        return answers

    @torch.inference_mode()
    def spell(self, clips: Sequence[Query], beams: int = 1) -> list[str]:
        """What is said in every clip, by its CTC outputs: queries of one sound each, as ctc tasks
        train them.

        Raises:
            UserError: a clip is longer than ``data.seq_len``.
        """
        lengths = np.array([count_tokens(clip, self.config.media) for clip in clips], np.int64)
        self._check_lengths(lengths)
        texts = [""] * len(clips)
        at_once = min(_FORWARD_TOKENS, _LOGIT_ELEMENTS // self.config.model.vocab_size)
        for rows in _rows_of_like_length(lengths, 0, at_once):
            builder = BatchBuilder(len(rows), int(lengths[rows].max()), self.config.media)
            for row in rows.tolist():
                builder.open_sequence()
                last = lay_query(builder, clips[row])
                at = np.arange(last + 1 - lengths[row], last + 1)
                add_transcript(builder, at, np.zeros(0, np.int64), 0.0)
            log_probs, counts = self.model.outputs("ctc", builder.finish().to(self.device))
            log_probs = log_probs.masked_fill(~self._text_tokens(blank=True), -torch.inf)
            for row, clip_log_probs, count in zip(
                rows.tolist(), log_probs.cpu().numpy(), counts.tolist(), strict=True
            ):
                ids = (
                    beam_ctc(clip_log_probs[:count], BLANK, beams)[0][0]
                    if beams > 1
                    else greedy_ctc(clip_log_probs[:count], BLANK)
                )
                texts[row] = self.tokenizer.decode(ids)
        return texts

    @torch.inference_mode()
    def class_scores(self, queries: Sequence[Query], prompt: str, head: str) -> NDArray[np.float32]:
        """Log-probabilities of a linear head's classes, float32 [queries, classes], in the order of
        ``model.classes``.

        Raises:
            UserError: there is no such head, or a query is longer than ``data.seq_len``.
        """
        heads = sorted(self.config.model.classes)
        if head not in heads:
            raise UserError(f"head {head!r}: the model has {', '.join(heads) or 'none'}")
        segments = self._closed(queries, prompt, ANSWER)
        out = np.zeros((len(segments), len(self.config.model.classes[head])), np.float32)
        for items, batch, ends in self._packed(segments):
            batch = batch.with_block("classify", at_T=ends)
            logits = self.model.outputs("classify", batch)[heads.index(head)]
            out[items] = logits.log_softmax(-1).cpu().numpy()
        return out

    @torch.inference_mode()
    def embed(self, queries: Sequence[Query]) -> NDArray[np.float32]:
        """Embeddings of unit length, float32 [queries, E]; training embeds queries of one part.

        Raises:
            UserError: a query is longer than ``data.seq_len``.
        """
        segments = self._closed(queries, "", EMBED)
        out = np.zeros((len(segments), self.config.model.embed_dim), np.float32)
        for items, batch, ends in self._packed(segments):
            batch = batch.with_block("contrastive", at_T=ends)
            out[items] = self.model.outputs("contrastive", batch).cpu().numpy()
        return out

    def _closed(self, queries: Sequence[Query], prompt: str, last: int) -> list[Query]:
        closing = Text(np.array([*self.tokenizer.encode(prompt), last], np.int64))
        return [[*query, closing] for query in queries]

    def _check_lengths(self, lengths: NDArray[np.int64]) -> None:
        longest, seq_len = int(lengths.max(initial=0)), self.config.data.seq_len
        if longest > seq_len:
            raise UserError(
                f"data.seq_len={seq_len}: a query with its answer needs {longest} tokens; "
                "shorten the query, or train with a larger data.seq_len"
            )

    def _text_tokens(self, blank: bool = False) -> Tensor:
        """bool [V]: tokens an answer may hold, and <|end|> or, for CTC, the blank."""
        allowed = torch.zeros(self.config.model.vocab_size, dtype=torch.bool, device=self.device)
        allowed[len(SPECIAL_TOKENS) : len(self.tokenizer)] = True
        allowed[BLANK if blank else END] = True
        return allowed

    def _packed(self, segments: list[Query]) -> Iterator[tuple[NDArray[np.int64], Batch, Tensor]]:
        """Segments packed into sequences, a few sequences at a time.

        Yields (which segments, their batch, flat position of the last token of each, int64).
        """
        seq_len, media = self.config.data.seq_len, self.config.media
        lengths = np.array([count_tokens(segment, media) for segment in segments], np.int64)
        self._check_lengths(lengths)
        bins = best_fit(lengths, np.argsort(-lengths, kind="stable"), seq_len)
        at_once = max(1, _FORWARD_TOKENS // seq_len)
        for first in range(0, len(bins), at_once):
            group = bins[first : first + at_once]
            if self.device.type == "cuda":
                shape = (at_once, seq_len)  # FlexAttention is compiled for each shape it meets
            else:
                shape = (len(group), max(int(lengths[items].sum()) for items in group))
            builder = BatchBuilder(*shape, media)
            ends = []
            for items in group:
                builder.open_sequence()
                ends += [lay_query(builder, segments[item]) for item in items]
            batch = builder.finish().to(self.device)
            yield (
                np.concatenate(group).astype(np.int64),
                batch,
                torch.tensor(ends, device=self.device),
            )

    def _answer_scores(self, segments: list[Query], label: list[int]) -> NDArray[np.float32]:
        """Log-likelihood of one answer to every segment, float32 [segments]; each is read with the
        answer behind it.
        """
        behind = Text(np.array(label, np.int64))
        out = np.zeros(len(segments), np.float32)
        for items, batch, ends in self._packed([[*segment, behind] for segment in segments]):
            at_RK = ends[:, None] + torch.arange(-len(label), 1, device=self.device)
            log_probs = self.model.logits(
                self.model.hidden(batch).flatten(0, 1)[at_RK]
            ).log_softmax(-1)
            wanted = torch.tensor([*label, END], device=self.device).expand(len(items), -1)
            out[items] = log_probs.gather(2, wanted[..., None]).double().sum((1, 2)).cpu().numpy()
        return out

    def _tree_scores(self, segments: list[Query], tree: LabelTree) -> NDArray[np.float32]:
        """Scores of the tree's labels, float32 [segments, labels]; one segment a row of the
        batch.
        """
        media, nodes = self.config.media, len(tree.tokens)
        length = max(count_tokens(segment, media) for segment in segments) + nodes
        builder = BatchBuilder(len(segments), length, media)
        answers = []
        for segment in segments:
            builder.open_sequence()
            answers.append(lay_query(builder, segment))
            builder.add_text(tree.tokens)
        batch = builder.finish()
        answer_R = torch.tensor(answers)
        node_RK = answer_R[:, None] + 1 + torch.arange(nodes)
        # A position follows its parent's, not the one written before it.
        position = batch.position_BL3.flatten(0, 1)
        position[node_RK] = (
            position[answer_R][:, None] + 1 + torch.from_numpy(tree.depths).int()[:, None]
        )

        batch = batch.to(self.device)
        plan = make_plan(batch, "dense")
        assert plan.dense_mask is not None
        sees = torch.from_numpy(tree.sees).to(self.device)
        for row, answer in enumerate(answers):
            start = answer + 1 - row * length
            plan.dense_mask[row, 0, start : start + nodes, start : start + nodes] = sees
        hidden = self.model.hidden(batch, plan).flatten(0, 1)
        # The root, then the nodes.
        at_RP = torch.cat([answer_R[:, None], node_RK], dim=1).to(self.device)
        at_once = max(1, _LOGIT_ELEMENTS // (at_RP.shape[1] * self.config.model.vocab_size))
        parts = [self._path_sums(hidden[at], tree) for at in at_RP.split(at_once)]
        return torch.cat(parts).float().cpu().numpy()

    def _path_sums(self, hidden_RPD: Tensor, tree: LabelTree) -> Tensor:
        """Log-likelihoods, float64 [R, labels], from the outputs at the root and at every node."""
        log_probs = (
            self.model.logits(hidden_RPD.flatten(0, 1))
            .log_softmax(-1)
            .unflatten(0, hidden_RPD.shape[:2])
        )
        device = hidden_RPD.device
        parents, tokens, ends = (
            torch.from_numpy(array).to(device)
            for array in (tree.parents + 1, tree.tokens, tree.ends + 1)
        )
        edges = log_probs[:, parents, tokens].double()
        # Over each node's ancestors and itself.
        sums = edges @ torch.from_numpy(tree.sees).to(device).double().T
        sums = torch.cat([sums.new_zeros(len(sums), 1), sums], dim=1)
        return sums[:, ends] + log_probs[:, ends, END].double()


def _rows_of_like_length(
    lengths: NDArray[np.int64], extra: int, positions: int = _FORWARD_TOKENS
) -> Iterator[NDArray[np.int64]]:
    """Items by falling length, int64 [R] at a time, so that little of a forward pass is padding."""
    order = np.argsort(-lengths, kind="stable")
    first = 0
    while first < len(order):
        longest = int(lengths[order[first]]) + extra
        most = max(1, positions // longest)
        alike = lengths[order] + extra >= min(longest * _ROW_SLACK, longest - 8)
        last = min(first + most, int(np.count_nonzero(alike)))
        yield order[first:last]
        first = last
