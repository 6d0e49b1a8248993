"""Scores of one checkpoint, kept in the run's folder."""

import json

import pytest

from mmscale.checkpoint.score_file import read_scores, write_scores
from mmscale.errors import UserError


def test_scores_of_one_step_add_up(tmp_path):
    entry = {"scores": {}, "digests": [], "command": ""}
    write_scores(tmp_path, 3, {"a": entry})
    write_scores(tmp_path, 3, {"b": entry})
    assert set(read_scores(tmp_path, 3)) == {"a", "b"} and read_scores(tmp_path, 4) == {}
    write_scores(tmp_path, 4, {"c": entry})
    assert set(read_scores(tmp_path, 4)) == {"c"}
    (tmp_path / "scores.json").write_text("[]")
    with pytest.raises(UserError, match=r"scores\.json: not a score file"):
        read_scores(tmp_path, 4)
    for wrong in (
        {},
        {**entry, "scores": 1},
        {**entry, "digests": [1]},
        {**entry, "command": None},
        [],
    ):
        tree = {"format": "mmscale-scores", "version": 1, "step": 4, "entries": {"d": wrong}}
        (tmp_path / "scores.json").write_text(json.dumps(tree))
        with pytest.raises(UserError, match=r"scores\.json: damaged \(entry 'd'\); remove it"):
            read_scores(tmp_path, 4)
