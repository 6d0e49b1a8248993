"""Two runs of one config, with other numbers of ranks on the way."""

import json
from pathlib import Path

import pytest
import torch
from checkpoints import weights
from killing import metrics


def as_if_nothing_had_happened(folder: Path, reference: Path) -> None:
    """Every step once, on the same samples in the same order, with the same losses, ending in the
    same weights.

    Sums of one rank are rounded otherwise than those of two, and later steps carry that on: equal
        to a thousandth.
    """
    ours, theirs = metrics(folder), metrics(reference)
    assert (
        [row["step"] for row in ours] == [row["step"] for row in theirs] == list(range(len(ours)))
    )
    assert [row["tokens"] for row in ours] == [row["tokens"] for row in theirs]
    assert [row["loss"] for row in ours] == pytest.approx([row["loss"] for row in theirs], rel=1e-3)
    for name in ("step", "seen", "bad", "fingerprint"):
        assert _state(folder)[name] == _state(reference)[name], name
    mine = weights(folder)
    for name, tensor in weights(reference).items():
        torch.testing.assert_close(
            mine[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda said, name=name: f"{name}: {said}"
        )


def _state(folder: Path) -> dict:
    """state.json of the newest checkpoint: among its numbers, samples seen and the fingerprint of
    the order.
    """
    newest = sorted((folder / "checkpoints").glob("step-*"))[-1]
    return json.loads((newest / "state.json").read_text())
