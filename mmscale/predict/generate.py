"""Generation with a cache: greedy, sampling and beam search, many queries at a time.

Shape suffixes: R rows (one hypothesis each), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmscale import prf
from mmscale.batch import Batch
from mmscale.model.fusion import FusionTransformer
from mmscale.predict.decoding import Choices, Decoding


@dataclass
class Hypothesis:
    """An answer, or the beginning of one."""

    ids: list[int] = field(default_factory=list)  # without <|end|>
    log_prob: float = 0.0  # of its tokens, <|end|> included if it ended; nats
    ended: bool = False

    def rank(self, length_penalty: float) -> float:
        """What beam search orders by; see `Decoding`."""
        return self.log_prob / ((5 + len(self.ids) + self.ended) / 6) ** length_penalty


class Generator:
    """Answers queries with one model.

    Args:
        model: in evaluation mode.
        allowed_V: bool, tokens that may be chosen at all.
        end: the token that ends an answer.
        decoding: how to choose.
        choices: the answers to choose from; None: any.
    """

    def __init__(
        self,
        model: FusionTransformer,
        allowed_V: Tensor,
        end: int,
        decoding: Decoding,
        choices: Choices | None,
    ) -> None:
        self._model, self._allowed_V, self._end = model, allowed_V, end
        self._decoding, self._choices = decoding, choices

    def answer(self, batch: Batch, numbers: list[int], rooms: list[int]) -> list[list[Hypothesis]]:
        """Of each query, one a sequence of ``batch``, the hypotheses found, the best first.

        ``numbers`` are the queries' numbers, which sampling is keyed by; ``rooms`` the most tokens
        each may get.
        """
        hidden, cache = self._model.start(batch, max(rooms))
        beam = self._decoding.beams > 1
        rows = [_Beam(query, Hypothesis()) for query in range(len(numbers))]
        done: list[list[Hypothesis]] = [[] for _ in numbers]
        for position in range(max(rooms)):
            log_probs = self._log_probs(hidden, rows)
            if beam:
                rows, parents = self._widen(log_probs, rows, rooms, done)
            else:
                rows, parents = self._extend(
                    log_probs_RV=log_probs,
                    rows=rows,
                    rooms=rooms,
                    done=done,
                    numbers=numbers,
                    position=position,
                )
            if not rows:
                break
            device = hidden.device
            cache.select(torch.tensor(parents, device=device))
            tokens = torch.tensor([row.so_far.ids[-1] for row in rows], device=device)
            hidden = self._model.step(tokens, cache)
        penalty, beams = self._decoding.length_penalty if beam else 0.0, self._decoding.beams
        return [
            sorted(hypotheses, key=lambda hypothesis: -hypothesis.rank(penalty))[:beams]
            for hypotheses in done
        ]

    def _log_probs(self, hidden_RD: Tensor, rows: list[_Beam]) -> Tensor:
        """float32 [R, V]: of the whole vocabulary, then minus infinity for what may not be
        chosen.
        """
        log_probs = self._model.logits(hidden_RD).log_softmax(-1)
        if self._choices is None:
            return log_probs.masked_fill(~self._allowed_V, -torch.inf)
        barred = torch.ones_like(log_probs, dtype=torch.bool)
        for number, row in enumerate(rows):
            barred[number, self._choices.after(row.so_far.ids)] = False
        return log_probs.masked_fill(barred, -torch.inf)

    def _extend(
        self,
        *,
        log_probs_RV: Tensor,
        rows: list[_Beam],
        rooms: list[int],
        done: list[list[Hypothesis]],
        numbers: list[int],
        position: int,
    ) -> tuple[list[_Beam], list[int]]:
        """One token more for every row. Returns the rows that continue, and which rows they
        were.
        """
        if self._decoding.temperature > 0:
            keys = [
                prf.derive_key("sample", self._decoding.seed, numbers[row.query], position)
                for row in rows
            ]
            draws = np.array([prf.Draws(key).uniform() for key in keys])
            chosen = sample(log_probs_RV, draws, self._decoding)
        else:
            chosen = log_probs_RV.argmax(-1)
        gained = log_probs_RV.gather(1, chosen[:, None])[:, 0].tolist()
        kept, parents = [], []
        for number, (row, token, more) in enumerate(
            zip(rows, chosen.tolist(), gained, strict=True)
        ):
            after = self._grown(row.so_far, token, more)
            if after.ended or len(after.ids) >= rooms[row.query]:
                done[row.query].append(after)
            else:
                kept.append(_Beam(row.query, after))
                parents.append(number)
        return kept, parents

    def _widen(
        self,
        log_probs_RV: Tensor,
        rows: list[_Beam],
        rooms: list[int],
        done: list[list[Hypothesis]],
    ) -> tuple[list[_Beam], list[int]]:
        """Every row's likeliest continuations, of which each query keeps its best. Returns as
        `_extend`.
        """
        beams, penalty = self._decoding.beams, self._decoding.length_penalty
        # One of them may be the end: one more than the beams leaves enough that continue.
        gained, tokens = log_probs_RV.topk(min(beams + 1, log_probs_RV.shape[1]), dim=-1)
        grown: dict[int, list[tuple[Hypothesis, int]]] = {}
        for number, (row, values, ids) in enumerate(
            zip(rows, gained.tolist(), tokens.tolist(), strict=True)
        ):
            for more, token in zip(values, ids, strict=True):
                if more > -np.inf:
                    grown.setdefault(row.query, []).append(
                        (self._grown(row.so_far, token, more), number)
                    )
        kept, parents = [], []
        for query, continuations in grown.items():
            continuations.sort(key=lambda pair: -pair[0].log_prob)
            going = 0
            for after, number in continuations:
                if after.ended:
                    done[query].append(after)
                elif going < beams:
                    going += 1
                    if len(after.ids) >= rooms[query]:
                        done[query].append(after)
                    else:
                        kept.append(_Beam(query, after))
                        parents.append(number)
        return self._worth_it(
            rows=kept, parents=parents, rooms=rooms, done=done, beams=beams, penalty=penalty
        )

    def _worth_it(
        self,
        *,
        rows: list[_Beam],
        parents: list[int],
        rooms: list[int],
        done: list[list[Hypothesis]],
        beams: int,
        penalty: float,
    ) -> tuple[list[_Beam], list[int]]:
        """Without the rows that can no longer come among their query's best, however they
        continue.
        """
        kept = []
        for row, parent in zip(rows, parents, strict=True):
            ranks = sorted(
                (hypothesis.rank(penalty) for hypothesis in done[row.query]), reverse=True
            )
            # Its probability can only fall, and the longest answer divides it by most.
            most = row.so_far.log_prob / ((5 + rooms[row.query] + 1) / 6) ** penalty
            if len(ranks) < beams or most > ranks[beams - 1]:
                kept.append((row, parent))
        return [row for row, _ in kept], [parent for _, parent in kept]

    def _grown(self, so_far: Hypothesis, token: int, more: float) -> Hypothesis:
        if token == self._end:
            return Hypothesis(so_far.ids, so_far.log_prob + more, ended=True)
        return Hypothesis([*so_far.ids, token], so_far.log_prob + more)


@dataclass
class _Beam:
    query: int
    so_far: Hypothesis


def sample(log_probs_RV: Tensor, draws: NDArray[np.float64], decoding: Decoding) -> Tensor:
    """A token of each row, int64 [R], from ``draws`` in [0, 1): the inverse of the cumulative
    distribution.

    The tokens stand in the order of their probabilities, so the result is one function of row and
    draw.
    """
    assert decoding.temperature > 0
    ordered, tokens = log_probs_RV.double().sort(dim=-1, descending=True, stable=True)
    # The likeliest is 0 before the division, so that the smallest temperature leaves it.
    share = ((ordered - ordered[:, :1]) / decoding.temperature).softmax(-1)
    if decoding.top_k:
        share[:, decoding.top_k :] = 0
    # The nucleus: every token that the likelier ones do not fill up yet, at least one.
    before = share.cumsum(-1) - share
    share = share.masked_fill(before >= decoding.top_p * share.sum(-1, keepdim=True), 0)
    total = share.cumsum(-1)
    wanted = torch.from_numpy(draws).to(total)[:, None] * total[:, -1:]
    place = torch.searchsorted(total, wanted, right=True).clamp(max=total.shape[1] - 1)
    return tokens.gather(1, place)[:, 0]
