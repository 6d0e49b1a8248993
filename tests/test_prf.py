"""The project's random functions are frozen: these numbers may never change without raising
prf.VERSION.
"""

import numpy as np
import pytest

from mmscale import prf


def test_frozen_values():
    key = prf.derive_key("order", 7)
    assert key == 11407483506326132126
    assert prf.bits(key, np.arange(3, dtype=np.uint64)).tolist() == [
        2741175500171923987,
        7849533449212282198,
        8647900014278787508,
    ]
    assert prf.Permutation(9, 1000)(np.arange(8)).tolist() == [
        233,
        434,
        447,
        520,
        317,
        49,
        996,
        283,
    ]
    assert prf.normal(4, 3).tolist() == pytest.approx(
        [1.9524117708, 1.6450216770, 0.1522473693], abs=1e-6
    )
    assert prf.VERSION == 1


def test_a_row_of_numbers_is_what_its_key_gives_alone():
    keys = [prf.derive_key("row", n) for n in range(5)]
    assert prf.uniform_rows(keys, 7).tolist() == [prf.uniform(key, 7).tolist() for key in keys]


def test_draws_hash_the_parts_of_their_key_when_they_are_asked():
    parts, whole = prf.Draws((3, "a", 1)), prf.Draws(prf.derive_key(3, "a", 1))
    assert [parts.uniform(), *parts.uniforms(3)] == [whole.uniform(), *whole.uniforms(3)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 1000, 65_537])
def test_permutation_is_a_bijection(size):
    values = prf.Permutation(prf.derive_key("p", size), size)(np.arange(size))
    assert np.array_equal(np.sort(values), np.arange(size))


def test_permutation_needs_no_table_and_depends_on_the_key():
    huge = 10**15
    first, second = prf.Permutation(1, huge), prf.Permutation(2, huge)
    positions = np.array([0, 1, huge - 1])
    assert np.array_equal(first(positions), [first(int(p)) for p in positions])
    assert not np.array_equal(first(positions), second(positions))
    assert ((first(positions) >= 0) & (first(positions) < huge)).all()


def test_permutation_moves_neighbours_apart():
    size = 10_000
    values = prf.Permutation(3, size)(np.arange(size))
    correlation = np.corrcoef(np.arange(size), values)[0, 1]
    assert abs(correlation) < 0.05
    assert np.mean(np.abs(np.diff(values)) == 1) < 0.01


def test_distributions():
    uniform = prf.uniform(11, 200_000)
    assert uniform.min() >= 0.0 and uniform.max() < 1.0
    counts, _ = np.histogram(uniform, bins=20, range=(0, 1))
    assert np.abs(counts / 10_000 - 1).max() < 0.05
    normal = prf.normal(11, 200_000)
    assert abs(normal.mean()) < 0.01 and abs(normal.std() - 1) < 0.01
    assert abs((normal**4).mean() - 3) < 0.1


def test_any_slice_can_be_drawn_alone():
    whole = prf.normal(5, 1000)
    assert np.array_equal(prf.normal(5, 100, start=450), whole[450:550])


def test_keys_are_hashed_not_added():
    assert len({prf.derive_key(a, b) for a in range(50) for b in range(50)}) == 2500
    assert prf.derive_key(1, "2") != prf.derive_key("1", 2)
    assert prf.derive_key("ab", "c") != prf.derive_key("a", "bc")


def test_one_draw_at_a_time_equals_many():
    single, many = prf.Draws(77), prf.Draws(77)
    assert [single.uniform() for _ in range(20)] == many.uniforms(20).tolist()
    assert single.uniform() == many.uniform()
