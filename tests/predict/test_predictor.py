"""Batched, packed and tree-shaped predictions equal asking one plain question at a time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from packings import MEDIA, model_config

from mmscale import prf
from mmscale.config import Config, DataConfig
from mmscale.data.loading.batch_builder import BatchBuilder
from mmscale.data.special_tokens import ANSWER, EMBED, END, SPECIAL_TOKENS
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError
from mmscale.model.fusion import FusionTransformer
from mmscale.model.initialise import initialise
from mmscale.predict.decoding import Decoding
from mmscale.predict.label_tree import build_trees
from mmscale.predict.predictor import Predictor
from mmscale.predict.query import Clip, Picture, Text, count_tokens, lay_query

LABELS = ["cat", "catalogue", "dog", "", "深度学习", "cat", "do"]
TOKENIZER = Tokenizer.train(["the cat and the dog", "catalogue", "深度 学习"], 300)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def make_predictor(seq_len=96, seed=0, **changes):
    model_sizes = model_config(vocab_size=320, **changes)
    model = FusionTransformer(model_sizes, MEDIA)
    initialise(model, model_sizes, seed)
    # Decisive logits, so that rounding cannot change an argmax.
    model.embedding.weight.data.mul_(20)
    return Predictor(
        model, TOKENIZER, Config(media=MEDIA, model=model_sizes, data=DataConfig(seq_len=seq_len))
    )


def make_queries(count=24, seed=0):
    """Queries of one or two parts of every kind and many lengths."""
    draws = prf.Draws(prf.derive_key("queries", seed))
    queries = []
    for number in range(count):
        words = (5 + draws.uniforms(draws.integer(1, 15)) * 250).astype(np.int64)
        pixels = draws.uniforms(3 * MEDIA.image_height * MEDIA.image_width) * 255
        picture = Picture(pixels.astype(np.uint8).reshape(3, MEDIA.image_height, MEDIA.image_width))
        frames = draws.integer(1, 90)
        clip = Clip(
            draws.normals(frames * MEDIA.mel_bins)
            .reshape(frames, MEDIA.mel_bins)
            .astype(np.float32)
        )
        queries.append(
            [[Text(words)], [picture], [clip], [picture, Text(words)], [Text(words), clip]][
                number % 5
            ]
        )
    return queries


def plain_hidden(predictor, query, ids):
    """Outputs of one segment alone, by the reference attention."""
    whole = [*query, Text(np.array(ids, np.int64))]
    builder = BatchBuilder(1, count_tokens(whole, MEDIA), MEDIA)
    builder.open_sequence()
    lay_query(builder, whole)
    return predictor.model.hidden(builder.finish())[0]


def plain_score(predictor, query, prompt, label):
    ids = TOKENIZER.encode(label)
    hidden = plain_hidden(predictor, query, [*TOKENIZER.encode(prompt), ANSWER, *ids])
    log_probs = predictor.model.logits(hidden[-len(ids) - 1 :]).log_softmax(-1)
    return sum(float(log_probs[n, token]) for n, token in enumerate([*ids, END]))


@pytest.mark.parametrize("prompt", ["", "what is it"])
@pytest.mark.parametrize("stems", [("patch", "conv"), ("cnn", "rnn")])
def test_label_scores_equal_scoring_every_label_alone(prompt, stems):
    predictor = make_predictor(image_stem=stems[0], audio_stem=stems[1])
    queries = make_queries()
    scores = predictor.label_scores(queries, prompt, LABELS)
    expected = [
        [plain_score(predictor, query, prompt, label) for label in LABELS] for query in queries
    ]
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, np.array(expected), rtol=1e-4, atol=1e-3)


def test_label_scores_do_not_depend_on_how_the_labels_are_split_into_trees(monkeypatch):
    predictor, queries = make_predictor(), make_queries()
    whole = predictor.label_scores(queries, "", LABELS)
    monkeypatch.setattr("mmscale.predict.predictor._TREE_NODES", 4)
    monkeypatch.setattr("mmscale.predict.predictor._FORWARD_TOKENS", 64)
    monkeypatch.setattr("mmscale.predict.predictor._LOGIT_ELEMENTS", 1)
    np.testing.assert_allclose(
        predictor.label_scores(queries, "", LABELS), whole, rtol=1e-4, atol=1e-3
    )


def test_trees_hold_every_label_once_and_share_prefixes():
    ids = [[1, 2], [1, 2, 3], [], [4], [1, 5], [1, 2]]
    (tree,) = build_trees(ids, 100)
    assert tree.tokens.tolist() == [1, 2, 3, 5, 4] and tree.parents.tolist() == [-1, 0, 1, 0, -1]
    assert tree.depths.tolist() == [0, 1, 2, 1, 0]
    assert tree.sees[2].tolist() == [True, True, True, False, False]
    small = build_trees(ids, 3)
    assert sorted(label for tree in small for label in tree.labels.tolist()) == list(range(6))
    assert all(len(tree.tokens) <= 3 for tree in small)


def test_generate_equals_a_plain_loop():
    predictor, queries = make_predictor(), make_queries()
    allowed = [END, *range(len(SPECIAL_TOKENS), len(TOKENIZER))]
    expected, stopped = [], 0
    for query in queries:
        answer = []
        for _ in range(9):
            hidden = plain_hidden(predictor, query, [*TOKENIZER.encode("say"), ANSWER, *answer])
            logits = predictor.model.logits(hidden[-1:])[0]
            token = max(allowed, key=lambda candidate: float(logits[candidate]))
            if token == END:
                stopped += 1
                break
            answer.append(token)
        expected.append(TOKENIZER.decode(answer))
    assert predictor.generate(queries, "say", Decoding(max_new_tokens=9)) == expected
    assert len(set(expected)) > 3


def test_generate_stops_at_end_and_at_the_sequence_length():
    predictor = make_predictor(seq_len=20)
    query = [Text(np.arange(10, 25))]
    emphatic = predictor.model.embedding.weight
    last = plain_hidden(predictor, query, [ANSWER])[-1]
    emphatic[END] = 10 * last
    assert predictor.generate([query], "", Decoding(max_new_tokens=50)) == [""]
    emphatic[END] = 0
    emphatic[100] = 10 * last
    endless = predictor.generate([query], "", Decoding(max_new_tokens=50))[0]
    assert endless and len(TOKENIZER.encode(endless)) <= 20
    assert predictor.generate([], "", Decoding(max_new_tokens=5)) == []


def test_embeddings_equal_embedding_one_at_a_time():
    predictor, queries = make_predictor(), make_queries(30)
    packed = predictor.embed(queries)
    assert packed.shape == (30, 16) and packed.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(packed, axis=1), 1.0, rtol=1e-5)
    for query, row in zip(queries, packed, strict=True):
        alone = F.normalize(
            predictor.model.embed_head(plain_hidden(predictor, query, [EMBED])[-1]), dim=-1
        )
        np.testing.assert_allclose(row, alone.numpy(), rtol=1e-3, atol=1e-4)


def test_dropout_of_the_config_is_off():
    queries = make_queries(5)
    np.testing.assert_array_equal(
        make_predictor(dropout=0.5).embed(queries), make_predictor(dropout=0.0).embed(queries)
    )


def test_a_query_that_is_too_long_names_the_key():
    predictor = make_predictor(seq_len=16)
    query = [Text(np.full(16, 9))]
    assert predictor.query_tokens(query) == 17
    for ask in (
        lambda: predictor.embed([query]),
        lambda: predictor.generate([query], "", Decoding(max_new_tokens=4)),
        lambda: predictor.label_scores([query], "", ["a"]),
    ):
        with pytest.raises(UserError, match=r"data\.seq_len=16"):
            ask()
