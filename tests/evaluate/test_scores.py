"""Scores against cases worked out by hand."""

import numpy as np
import pytest

from mmscale.evaluate.scores import (
    accuracy,
    character_error_rate,
    confusion,
    macro_f1,
    recall_at,
    word_error_rate,
    words,
)


def test_accuracy_confusion_and_macro_f1():
    truth = ["a", "a", "a", "b", "b", "c"]
    predicted = ["a", "a", "b", "b", "c", "c"]
    counts = confusion(truth, predicted, ["a", "b", "c", "never"])
    assert accuracy(truth, predicted) == pytest.approx(4 / 6)
    assert counts.tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    # a: precision 1, recall 2/3; b: 1/2, 1/2; c: 1/2, 1; "never" does not occur.
    assert macro_f1(counts) == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)


def test_a_label_predicted_but_never_true_counts_as_zero_f1():
    assert macro_f1(confusion(["a"], ["b"], ["a", "b"])) == 0.0


def test_word_error_rate_sums_before_dividing():
    truth = ["the cat sat", "yes"]
    predicted = ["the dog sat down", "yes"]
    assert word_error_rate(truth, predicted) == pytest.approx(2 / 4)
    assert word_error_rate(truth, truth) == 0.0
    assert word_error_rate(["a"], ["b c d"]) == pytest.approx(3.0)


def test_chinese_and_japanese_words_are_characters():
    assert words("我爱 machine learning") == ["我", "爱", "machine", "learning"]
    assert words("カタカナとkanji漢字") == ["カ", "タ", "カ", "ナ", "と", "kanji", "漢", "字"]
    assert words("한국어 단어") == ["한국어", "단어"]
    assert word_error_rate(["今天天气好"], ["今天天汽好"]) == pytest.approx(1 / 5)


def test_character_error_rate():
    assert character_error_rate(["cat"], ["cut"]) == pytest.approx(1 / 3)
    assert character_error_rate(["a b"], ["ab"]) == pytest.approx(1 / 3)
    assert character_error_rate(["a  b"], ["a b"]) == pytest.approx(1 / 4)
    # White space of any kind is a character of its own kind, wherever it stands.
    assert character_error_rate(["a\n"], ["a"]) == pytest.approx(1 / 2)
    assert character_error_rate(["a \n b"], ["a \t b"]) == pytest.approx(1 / 5)


def test_empty_truths_count_what_is_said_in_their_place():
    assert word_error_rate(["", "one two"], ["noise", "one two"]) == pytest.approx(1 / 2)
    assert word_error_rate(["", ""], ["", ""]) == 0.0
    assert word_error_rate([""], ["x"]) == 1.0
    assert word_error_rate(["one two"], [""]) == 1.0


def unit(*degrees):
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def test_recall_of_instances():
    keys = [str(n) for n in range(12)]
    candidates = unit(*range(0, 120, 10))
    # Query n lies at candidate n, except that query 0 lies at candidate 3 and query 1 at candidate
    # 11.
    queries = unit(30.1, 110, *range(20, 120, 10))
    recall = recall_at(queries, candidates, keys, keys)
    # From query 0 the candidates 1..6 are closer than 0; from query 1 ten are closer than 1.
    assert recall == {"recall@1": 10 / 12, "recall@5": 10 / 12, "recall@10": 11 / 12}


def test_recall_of_classes_counts_any_equal_match():
    recall = recall_at(unit(0, 90), unit(2, 5, 80), ["x", "y"], ["y", "x", "x"])
    assert recall["recall@1"] == 0.0 and recall["recall@5"] == 1.0


def test_a_collapsed_model_finds_nothing():
    same = np.ones((20, 2), np.float32)
    keys = [str(n) for n in range(20)]
    assert set(recall_at(same, same, keys, keys).values()) == {0.0}


def test_no_number_is_no_hit():
    keys = [str(n) for n in range(20)]
    good, nothing = unit(*range(0, 100, 5)), np.full((20, 2), np.nan, np.float32)
    for query, candidate in ((nothing, nothing), (nothing, good), (good, nothing)):
        assert set(recall_at(query, candidate, keys, keys).values()) == {0.0}
    candidates = good.copy()
    candidates[3] = np.nan  # in everybody's way, and not found itself
    recall = recall_at(good, candidates, keys, keys)
    assert (recall["recall@1"], recall["recall@5"]) == (0.0, 0.95)


def test_who_has_no_match_misses_among_few_candidates_too():
    assert set(recall_at(unit(0, 9), unit(1, 2), ["a", "b"], ["c", "d"]).values()) == {0.0}


def test_own_candidate_can_be_left_out():
    points = unit(0, 1, 50, 90)
    recall = recall_at(points, points, list("aabc"), list("aabc"), leave_out_own=True)
    assert recall["recall@1"] == 0.5  # b and c have no other candidate of their class
