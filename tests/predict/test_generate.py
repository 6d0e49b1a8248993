"""Generation: the cache changes nothing, and every way to choose is what its definition says."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packings import MEDIA, add_segment, model_config

from mmscale import prf
from mmscale.data.loading.batch_builder import BatchBuilder
from mmscale.model.fusion import FusionTransformer
from mmscale.model.initialise import initialise
from mmscale.predict.ctc_decode import beam_ctc, greedy_ctc
from mmscale.predict.decoding import Choices, Decoding
from mmscale.predict.generate import Generator, sample

END, WORDS = 1, range(5, 9)  # a vocabulary that brute force can search


def make_model(**changes):
    config = model_config(**changes)
    model = FusionTransformer(config, MEDIA).eval()
    initialise(model, config, 3)
    with torch.no_grad():
        model.embedding.weight.mul_(40)  # sharp distributions, so that searches differ
    return model


def rows_of(kinds, seed, behind=()):
    """One query a row; ``behind``: tokens of each row that follow it."""
    built = []
    for tail in behind or [()] * len(kinds):
        draws, builder = prf.Draws(seed), BatchBuilder(len(kinds), 90, MEDIA)
        for row, kind in enumerate(kinds):
            builder.open_sequence()
            add_segment(builder, kind, 2 + 3 * row, 4 + row, draws)
            builder.add_text(behind[row] if behind else tail)
        built.append(builder.finish())
    return built[0]


@settings(max_examples=12, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 999),
    kinds=st.lists(st.sampled_from("tia"), min_size=1, max_size=4),
    choices=st.sampled_from(
        [
            {"kv_heads": 1},
            {"kv_heads": 4},
            {"fusion": "rnn"},
            {"untied": ["norm", "feed_forward"], "base_width": 16},
        ]
    ),
)
def test_with_and_without_cache_the_outputs_are_the_same(seed, kinds, choices):
    model = make_model(**choices)
    tails = [[5 + (seed + row + n) % 9 for n in range(4)] for row in range(len(kinds))]
    with torch.inference_mode():
        last, cache = model.start(rows_of(kinds, seed), extra=4)
        outputs = [last]
        for n in range(4):
            if n == 2:  # rows may be put in another order, and taken twice
                order = torch.arange(len(kinds)).flip(0).repeat(2)
                cache.select(order)
                cache.select(torch.arange(len(kinds)).flip(0))
            outputs.append(model.step(torch.tensor([tail[n] for tail in tails]), cache))
        whole_batch = rows_of(kinds, seed, behind=tails)
        whole = model.hidden(whole_batch)
    ends = (whole_batch.segment_BL > 0).sum(1)
    for n, output in enumerate(outputs):
        expected = whole[torch.arange(len(kinds)), ends - 5 + n]
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


def generator(model, decoding, choices=None):
    allowed = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    allowed[[END, *WORDS]] = True
    return Generator(model, allowed, END, decoding, choices)


def log_prob(model, kinds, seed, row, ids, *, end):
    """Log-probability of one answer to one row, from a pass over everything."""
    tails = [list(ids)] * len(kinds)
    batch = rows_of(kinds, seed, behind=tails)
    with torch.inference_mode():
        hidden = model.hidden(batch)[row]
        last = int((batch.segment_BL[row] > 0).sum()) - len(ids) - 1
        log_probs = model.logits(hidden[last : last + len(ids) + 1]).log_softmax(-1)
    wanted = [*ids, END] if end else list(ids)
    return sum(log_probs[n, token].item() for n, token in enumerate(wanted))


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_full_beam_finds_the_best_of_all_answers(length_penalty):
    model, kinds, seed, room = make_model(), "tia", 4, 3
    hypotheses = generator(model, Decoding(beams=100, length_penalty=length_penalty)).answer(
        rows_of(kinds, seed), [0, 1, 2], [room] * 3
    )
    for row in range(3):
        ranked = []
        for length in range(room + 1):
            for ids in itertools.product(WORDS, repeat=length):
                end = length < room
                total = log_prob(model, kinds, seed, row, ids, end=end)
                ranked.append((total / ((5 + length + end) / 6) ** length_penalty, list(ids)))
        ranked.sort(reverse=True)
        best = hypotheses[row][:5]
        assert [hypothesis.ids for hypothesis in best] == [ids for _, ids in ranked[:5]]
        for hypothesis, (rank, _) in zip(best, ranked, strict=False):
            assert hypothesis.rank(length_penalty) == pytest.approx(rank, abs=1e-4)


def naive_beam(model, kinds, seed, row, *, beams, room):
    """Beam search written down plainly, without cache or pruning, ranked by probability."""
    live, done = [((), 0.0)], []
    for _ in range(room):
        grown = []
        for ids, _ in live:
            for token in (END, *WORDS):
                total = log_prob(model, kinds, seed, row, ids, end=True) if token == END else None
                if token != END:
                    total = log_prob(model, kinds, seed, row, (*ids, token), end=False)
                grown.append(((*ids, token), total))
        grown.sort(key=lambda item: -item[1])
        done += [(ids[:-1], total) for ids, total in grown if ids[-1] == END]
        live = [(ids, total) for ids, total in grown if ids[-1] != END][:beams]
    return max(done + live, key=lambda item: item[1])


def test_a_narrow_beam_is_the_plain_beam_search():
    model, kinds, seed = make_model(), "ti", 8
    hypotheses = generator(model, Decoding(beams=2, length_penalty=0.0)).answer(
        rows_of(kinds, seed), [0, 1], [3, 3]
    )
    for row in range(2):
        ids, total = naive_beam(model, kinds, seed, row, beams=2, room=3)
        assert (tuple(hypotheses[row][0].ids), hypotheses[row][0].log_prob) == (
            ids,
            pytest.approx(total, abs=1e-4),
        )


def test_greedy_is_a_beam_of_one():
    model, batch = make_model(), rows_of("tia", 2)
    (greedy, _, third) = generator(model, Decoding()).answer(batch, [0, 1, 2], [6, 6, 1])
    (beam, _, _) = generator(model, replace(Decoding(), beams=1)).answer(
        batch, [0, 1, 2], [6, 6, 1]
    )
    assert greedy[0].ids == beam[0].ids
    assert len(third[0].ids) <= 1, "every query has a room of its own"


def test_constrained_answers_are_choices_and_the_best_of_them():
    model, kinds, seed = make_model(), "ta", 5
    answers = [[5], [5, 6], [7, 8], [8]]
    for decoding in (Decoding(beams=10, length_penalty=0.0), Decoding(), Decoding(temperature=5.0)):
        hypotheses = generator(model, decoding, Choices(answers, END)).answer(
            rows_of(kinds, seed), [0, 1], [3, 3]
        )
        for row, best in enumerate(hypotheses):
            assert best[0].ids in answers and best[0].ended
            if decoding.beams > 1:
                expected = max(
                    answers, key=lambda ids: log_prob(model, kinds, seed, row, ids, end=True)
                )
                assert best[0].ids == expected


def draw(log_probs, decoding, count=4000):
    draws = prf.uniform(prf.derive_key("test"), count)
    return sample(log_probs.expand(count, -1), draws, decoding).bincount(
        minlength=log_probs.shape[1]
    )


def test_sampling_follows_the_distribution():
    log_probs = torch.tensor([[0.5, 0.05, 0.3, 0.15]]).log()
    for temperature in (1.0, 0.5, 2.0):
        expected = (log_probs / temperature).softmax(-1)[0] * 4000
        counts = draw(log_probs, Decoding(temperature=temperature))
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert chi_square < 16.3, "one in a thousand, with three degrees of freedom"


@pytest.mark.parametrize(
    ("decoding", "kept"),
    [
        (Decoding(temperature=1.0, top_k=2), {0, 2}),
        (Decoding(temperature=1.0, top_p=0.5), {0}),
        (Decoding(temperature=1.0, top_p=0.51), {0, 2}),
        (Decoding(temperature=1.0, top_p=0.81), {0, 2, 3}),
        (Decoding(temperature=1.0, top_p=1e-9), {0}),
        (Decoding(temperature=1.0, top_k=3, top_p=0.8), {0, 2}),
    ],
)
def test_sampling_is_cut_where_it_says(decoding, kept):
    log_probs = torch.tensor([[0.5, 0.05, 0.3, 0.15]], dtype=torch.float64).log()
    assert set(draw(log_probs, decoding).nonzero()[:, 0].tolist()) == kept


def test_sampling_never_takes_a_barred_token_and_depends_on_seed_and_query_alone():
    log_probs = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    draws = np.array([0.0, 1.0 - 2.0**-53])
    assert sample(log_probs.expand(2, -1), draws, Decoding(temperature=9.0)).tolist() == [1, 1]
    log_probs = torch.tensor([[-torch.inf, -3.0, -0.1, -torch.inf, -9.0]])
    cold = Decoding(temperature=1e-39)
    assert sample(log_probs.expand(2, -1), draws, cold).tolist() == [2, 2], (
        "below what float32 can divide by"
    )
    model = make_model()

    def answers(kinds, numbers, seed):
        decoding = Decoding(temperature=3.0, seed=seed)
        hypotheses = generator(model, decoding).answer(rows_of(kinds, 2), numbers, [8] * len(kinds))
        return [best[0].ids for best in hypotheses]

    together = answers("ttt", [0, 1, 2], 1)
    assert answers("t", [0], 1)[0] == together[0], "whatever else is asked"
    assert answers("ttt", [0, 1, 2], 2) != together


def every_transcript(log_probs, blank=0):
    totals = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        ids = tuple(token for token, _ in itertools.groupby(path) if token != blank)
        totals[ids] = totals.get(ids, 0.0) + math.exp(
            sum(log_probs[n, token] for n, token in enumerate(path))
        )
    return sorted(totals.items(), key=lambda item: -item[1])


@pytest.mark.parametrize("seed", range(4))
def test_ctc_beam_sums_over_all_alignments(seed):
    log_probs = (
        torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
        .mul(2)
        .log_softmax(-1)
        .numpy()
    )
    expected = every_transcript(log_probs)
    transcripts = beam_ctc(log_probs, blank=0, beams=10_000)
    assert len(transcripts) == len(expected)
    for (ids, total), (best, probability) in zip(transcripts[:6], expected, strict=False):
        assert tuple(ids) == best and math.exp(total) == pytest.approx(probability, rel=1e-5)
    assert beam_ctc(log_probs, blank=0, beams=3)[0][0] == list(expected[0][0])


def test_ctc_greedy_by_hand():
    path = [0, 2, 2, 0, 2, 1, 1, 0]
    log_probs = np.log(np.eye(3, dtype=np.float32)[path] + 1e-3)
    assert greedy_ctc(log_probs, blank=0) == [2, 2, 1]
    assert greedy_ctc(log_probs[:0], blank=0) == []
