"""YAML of configs: no trap among plain words, a key once, faults in one line, written as it was."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmscale.strict_yaml import read_yaml, write_yaml

PLAIN = {
    "1e-3": 1e-3, "1E5": 1e5, ".5e3": 500.0, "1.5e3": 1500.0, "-.5": -0.5, "2.": 2.0,
    "1.0e-05": 1e-5, "1_000.5": 1000.5, ".inf": math.inf, "-.inf": -math.inf,
    "10:12": "10:12", "1:30:00": "1:30:00", "10:12.5": "10:12.5",
    "2026-09-01": "2026-09-01", "2026-09-01T10:00:00Z": "2026-09-01T10:00:00Z",
    "7": 7, "-7": -7, "+7": 7, "0": 0, "1_000": 1000, "0x1f": 31, "0b101": 5, "010": 8, "-010": -8,
    "08": "08", "0o17": "0o17", "1.2.3": "1.2.3", "1e": "1e", "=": "=",
    "true": True, "False": False, "yes": True, "no": False, "On": True, "OFF": False,
    "y": "y", "n": "n", "yES": "yES", "~": None, "null": None, "": None, "nil": "nil",
}  # fmt: skip


@pytest.mark.parametrize("text", PLAIN)
def test_what_a_plain_word_is(text):
    value = read_yaml(f"key: {text}")["key"]
    assert value == PLAIN[text] and type(value) is type(PLAIN[text])
    assert read_yaml(f"key: '{text}'") == {"key": text}, "in quotes it is text"


FAULTS = {
    "a: 1\nb: 2\na: 3\n": "line 3: the key 'a' is there twice",
    "x: &x {a: 1}\ny: {<<: *x, b: 1, b: 2}\n": "line 2: the key 'b' is there twice",
    "{1: a, 0x1: b}": "line 1: found duplicate key",
    "a: 1\n b: 2\n": "line 2: mapping values are not allowed",
    "a: [1, 2\nb: 3\n": "line 2: ",
    "a: *nowhere\n": "line 1: found undefined alias",
    "a: !!python/name:os.system\n": "line 1: could not determine a constructor",
    "a: 1\n---\nb: 2\n": "line 2: but found another document",
    "a: \x07\n": "unacceptable character #x0007: special characters are not allowed",
    "a: !!int nonsense\n": "invalid literal",
    "a: !!float ''\n": "string index out of range",
    "[" * 5000: "nested too deep",
    "a: &a [*a, *a]\n": "more than 100,000 values",
    "a: &a {b: *a}\n": "more than 100,000 values",
}


@pytest.mark.parametrize("text", FAULTS)
def test_a_fault_is_one_line_that_names_the_place(text):
    with pytest.raises(ValueError, match="^" + FAULTS[text].replace("(", "\\(")) as caught:
        read_yaml(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


def test_little_text_makes_no_endless_value():
    """Aliases of aliases, and merges of merges."""
    names = "abcdefgh"
    lists = ["a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]"]
    maps = ["a: &a {" + ", ".join(f"k{number}: 1" for number in range(10)) + "}"]
    for below, name in itertools.pairwise(names):
        lists.append(f"{name}: &{name} [{', '.join([f'*{below}'] * 10)}]")
        maps.append(f"{name}: &{name} {{<<: [{', '.join([f'*{below}'] * 10)}]}}")
    with pytest.raises(ValueError, match="more than 100,000 values"):
        read_yaml("\n".join(lists))
    with pytest.raises(ValueError, match="more than 100,000 merged values"):
        read_yaml("\n".join(maps))


def test_a_merge_is_overlaid_and_the_first_of_several_wins():
    text = "a: &a {x: 1, y: 1}\nb: &b {x: 2, z: 2}\nc: {<<: [*a, *b], y: 3}\nd: {<<: *b, x: 4}\n"
    tree = read_yaml(text)
    assert tree["c"] == {"x": 1, "y": 3, "z": 2} and tree["d"] == {"x": 4, "z": 2}


# As runs of before wrote it, by another library.
WRITTEN = """\
description: '#1: a "test" of Zürich'
seed: 0
run:
  dir: '2026-09-01'
  note: 'yes'
  clock: '10:12'
  empty: ''
  progress: true
train:
  lr: 1.0e-05
  grace: .inf
  weights: {}
  steps: 480
data:
  sets:
    a:
      shards:
      - x/{0000..0099}.tar
      - y
      prompt: "tab\\tand\\n\\U0001F600"
      nothing: null
"""
TREE = {
    "description": '#1: a "test" of Zürich',
    "seed": 0,
    "run": {"dir": "2026-09-01", "note": "yes", "clock": "10:12", "empty": "", "progress": True},
    "train": {"lr": 1e-5, "grace": math.inf, "weights": {}, "steps": 480},
    "data": {
        "sets": {
            "a": {
                "shards": ["x/{0000..0099}.tar", "y"],
                "prompt": "tab\tand\n😀",
                "nothing": None,
            }
        }
    },
}


def test_what_was_written_before_reads_the_same_and_is_written_the_same():
    assert read_yaml(WRITTEN) == TREE
    assert write_yaml(TREE) == WRITTEN.replace("\\U0001F600", "😀")


def test_text_is_one_line_and_quoted_if_it_looks_like_a_number():
    for word in PLAIN:
        assert read_yaml(write_yaml({"key": word})) == {"key": word}
    long = (
        "A sentence of more than eighty characters, with spaces "
        "and a quote (') in the middle of it."
    )
    assert write_yaml({"key": long}) == f"key: {long}\n"
    for word in ("1e-3", "10:12", "2026-09-01", "on", "010"):  # for readers of YAML 1.1 and 1.2
        assert write_yaml({"key": word}) == f"key: '{word}'\n"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=200), VALUES, max_size=4))
def test_what_is_written_is_read_back(tree):
    assert read_yaml(write_yaml(tree)) == tree
