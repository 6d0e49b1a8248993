"""Checkpoints of any world size are read row by row; shards that do not fit together are
refused.
"""

import json

import numpy as np
import pytest
import torch
from checkpoints import weights
from conftest import run_module
from safetensors.torch import save_file

from mmscale import prf
from mmscale.checkpoint.stored_weights import MeanOfWeights, StoredWeights
from mmscale.errors import UserError
from mmscale.release.export import ExportOptions, export


def save_shards(folder, pieces):
    """One file for each of ``pieces``: {name: (offsets, tensor)}."""
    folder.mkdir(exist_ok=True)
    for number, members in enumerate(pieces):
        begins = {name: {"saved_offsets": list(offsets)} for name, (offsets, _) in members.items()}
        save_file(
            {name: tensor.contiguous() for name, (_, tensor) in members.items()},
            folder / f"shard-{number}.safetensors",
            metadata={"DCP_SHARDING_INFO": json.dumps(begins)},
        )
    return folder


def whole(rows=7, columns=5):
    return torch.from_numpy(prf.normal(3, rows * columns)).reshape(rows, columns)


def test_any_rows_of_any_sharding(tmp_path):
    """Split by rows unevenly with an empty shard, by columns, and by both, as FSDP and tensor
    parallelism do.
    """
    full = whole()
    splits = [
        [{"w": ((0, 0), full)}],
        [{"w": ((0, 0), full[:3])}, {"w": ((3, 0), full[3:])}, {"w": ((7, 0), full[7:])}],
        [{"w": ((0, 0), full[:, :2])}, {"w": ((0, 2), full[:, 2:])}],
        [{"w": ((r, c), full[r : r + 4, c : c + 3])} for r in (0, 4) for c in (0, 3)],
    ]
    for number, pieces in enumerate(splits):
        stored = StoredWeights(save_shards(tmp_path / str(number), pieces))
        assert stored.shape("w") == (7, 5)
        for start in range(8):
            for stop in range(start, 8):
                assert torch.equal(stored.rows("w", start, stop), full[start:stop])


def test_shards_that_make_no_whole_are_refused(tmp_path):
    full = whole()
    wrong = {
        "a hole": [{"w": ((0, 0), full[:3])}, {"w": ((4, 0), full[4:])}],
        "an overlap": [{"w": ((0, 0), full[:4])}, {"w": ((2, 0), full[2:5])}],
        "an overlap and a hole of one size": [
            {"w": ((0, 0), full[:, :3])},
            {"w": ((0, 0), full[:, :2])},
            {"w": ((9, 4), full[:1, :1])},
        ],
        "other dimensions": [{"w": ((0, 0), full)}, {"w": ((0,), full[0])}],
    }
    for name, pieces in wrong.items():
        with pytest.raises(UserError, match="shards of w") as caught:
            StoredWeights(save_shards(tmp_path / name, pieces))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "info",
    [
        "[]",
        "{",
        '{"w": {"saved_offsets": [0]}}',
        '{"w": {"saved_offsets": [-1, 0]}}',
        '{"w": 3}',
        "{}",
    ],
)
def test_sharding_that_is_not_told_is_refused(tmp_path, info):
    save_file({"w": whole()}, tmp_path / "x.safetensors", metadata={"DCP_SHARDING_INFO": info})
    with pytest.raises(UserError, match=r"x\.safetensors: damaged"):
        StoredWeights(tmp_path)


def test_a_mean_is_that_of_numpy_in_any_order(tmp_path):
    tensors = [whole() * scale for scale in (1.0, 3.0, 1e-3)]
    sources = [
        StoredWeights(save_shards(tmp_path / str(n), [{"w": ((0, 0), tensor)}]))
        for n, tensor in enumerate(tensors)
    ]
    expected = np.mean([tensor.double().numpy() for tensor in tensors], axis=0).astype(np.float32)
    for order in ((0, 1, 2), (2, 1, 0)):
        mean = MeanOfWeights([sources[n] for n in order])
        np.testing.assert_allclose(mean.rows("w", 1, 6).numpy(), expected[1:6], rtol=1e-6)
    save_shards(tmp_path / "other", [{"w": ((0, 0), whole(6))}])
    with pytest.raises(UserError, match="--merge: w has different shapes"):
        MeanOfWeights([sources[0], StoredWeights(tmp_path / "other")]).shape("w")


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_release_of_a_run_on_any_number_of_ranks(tmp_path, small_run, ranks):
    """Real FSDP checkpoints: every exported tensor is what the shards hold, joined by their
    offsets.
    """
    command = [
        "mmscale",
        "train",
        "configs/train/digits.yaml",
        *small_run,
        f"run.dir={tmp_path}/run",
    ]
    run_module(
        [*command, "train.steps=1", "data.sequences=6", "parallel.strategy=fsdp"], ranks=ranks
    )
    expected = weights(tmp_path / "run")
    facts = export(
        tmp_path / "run", tmp_path / "out", options=ExportOptions(max_shard_bytes=30_000)
    )
    from safetensors.torch import load_file

    files = [name for name in facts["files"] if name.endswith(".safetensors")]
    exported = {
        name: tensor
        for file in files
        for name, tensor in load_file(tmp_path / "out" / file).items()
    }
    assert (
        len(list((tmp_path / "run" / "checkpoints").glob("*/*.safetensors"))) == ranks
        and len(files) > 1
    )
    assert exported.keys() == {
        name.removeprefix("model.") for name in expected if name.startswith("model.")
    }
    for name, tensor in exported.items():
        assert torch.equal(tensor, expected[f"model.{name}"]), name
