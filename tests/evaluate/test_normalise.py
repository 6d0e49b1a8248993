"""Text normalisers: what is done to both texts before they are compared."""

import pytest

from mmscale.errors import UserError
from mmscale.evaluate.normalise import normalised
from mmscale.evaluate.scores import accuracy, character_error_rate, word_error_rate
from mmscale.registry import NORMALISERS

TRUTH = ["  The cat\tsat ", "今天 天气好\n", "", "a\u00a0b", "line one\nline two", "x"]
PREDICTED = ["the cat sat", "今天天汽好", " ", "a b", "line one line too", " x\n"]


def scores(name):
    truth, predicted = normalised(name, TRUTH), normalised(name, PREDICTED)
    return [score(truth, predicted) for score in (word_error_rate, character_error_rate, accuracy)]


def test_the_default_gives_the_scores_of_before_there_was_a_choice():
    assert scores("whitespace") == [0.2, 0.10526315789473684, 0.5]  # computed by that version


def test_none_leaves_texts_as_they_are():
    assert normalised("none", TRUTH) == TRUTH
    words, _, exact = scores("none")
    assert words == 0.2 and exact == 0.0  # words are split at white space all the same
    truth, predicted = normalised("none", ["a  b\n"]), normalised("none", ["a b"])
    assert character_error_rate(truth, predicted) == pytest.approx(2 / 5)


def test_what_is_no_text_is_refused(monkeypatch):
    monkeypatch.setitem(NORMALISERS._kinds, "short", len)
    with pytest.raises(UserError, match=r"'short': gives 1 for 'a'; have it return a string"):
        normalised("short", ["a"])
