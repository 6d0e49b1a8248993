"""What is kept, what is forgotten, and that nothing of it travels to a worker."""

import pickle

from mmscale.data.planning.bounded_cache import BoundedCache


def test_what_was_asked_for_last_is_kept():
    cache, made = BoundedCache[str](2), []

    def make(name):
        made.append(name)
        return name.upper()

    for name in ("a", "b", "a", "c", "a", "b"):
        assert cache.recall(name, lambda name=name: make(name)) == name.upper()
    assert made == ["a", "b", "c", "b"], "b was asked for longest ago when c came"
    assert "a" in cache and "c" not in cache


def test_a_pickled_cache_is_empty():
    cache = BoundedCache[int](1)
    cache.recall("a", lambda: 1)
    other = pickle.loads(pickle.dumps(cache))
    assert "a" not in other and other.recall("a", lambda: 2) == 2
