"""Weights in every type and size of file, in little memory."""

import json

import numpy as np
import pytest
import torch
from checkpoints import relist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_run import save_run, small_config, write_shards

import mmscale
from mmscale.checkpoint.run_folder import load_run
from mmscale.checkpoint.stored_weights import StoredWeights
from mmscale.errors import UserError
from mmscale.release import weight_writer
from mmscale.release.export import ExportOptions, export


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("made")
    write_shards(made / "shards", count=4)
    save_run(small_config(made / "run", made / "shards"), steps=(5, 9))
    save_run(small_config(made / "other", made / "shards"), steps=(21,))
    return made


def tensors_of(release):
    return {n: t for path in release.glob("*.safetensors") for n, t in load_file(path).items()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_rounded_as_torch_rounds(folder, tmp_path, dtype):
    plain, _ = load_run(folder / "run")
    facts = export(
        folder / "run", tmp_path / "out", options=ExportOptions(dtype, max_shard_bytes=20_000)
    )
    wanted = getattr(torch, dtype)
    tensors = tensors_of(tmp_path / "out")
    for name, parameter in plain.model.named_parameters():
        assert tensors[name].dtype == wanted, name
        assert torch.equal(tensors[name], parameter.to(wanted)), name
    sizes = [t.stat().st_size for t in (tmp_path / "out").glob("*.safetensors")]
    largest = max(p.numel() for p in plain.model.parameters()) * 2
    assert len(sizes) > 2 and max(sizes) < max(20_000, largest) + 4096
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * facts["parameters"]

    stored, widened = (
        mmscale.load(tmp_path / "out"),
        mmscale.load(tmp_path / "out", dtype="float32"),
    )
    assert stored.predictor.model.embedding.weight.dtype == wanted
    assert widened.predictor.model.embedding.weight.dtype == torch.float32
    picture = np.full((16, 24), 99, np.uint8)
    alike = float(stored.embed(image=picture) @ widened.embed(image=picture))
    assert alike == pytest.approx(1.0, abs=0.02)
    assert isinstance(stored.describe(picture, max_new_tokens=2), str)


def spoil(path, name, value):
    """Put one number into a checkpoint's tensor."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors[name][3] = value
    save_file(tensors, path, metadata=metadata)
    relist(path.parent)


def test_values_beyond_float16_are_named(folder, tmp_path):
    run = save_run(small_config(tmp_path / "run", folder / "shards"))
    (path,) = run.glob("checkpoints/*/*.safetensors")
    spoil(path, "model.norm.weight", 70_000.0)
    with pytest.raises(
        UserError, match=r"model\.norm\.weight holds values beyond the range of float16"
    ):
        export(run, tmp_path / "out", options=ExportOptions("float16"))
    export(run, tmp_path / "out", options=ExportOptions("bfloat16"))


def test_memory_is_bounded_by_rows_not_by_tensors(folder, tmp_path, monkeypatch):
    """With 4 kB at once, no tensor of the model is ever whole in memory, and the files are the same
    bytes.
    """
    export(folder / "run", tmp_path / "whole", options=ExportOptions("bfloat16"))
    monkeypatch.setattr(weight_writer, "_ROWS_BYTES", 4096)
    asked = []
    rows = StoredWeights.rows

    def watched(self, name, start, stop):
        part = rows(self, name, start, stop)
        asked.append((part.numel() * 4, part[:1].numel() * 4))
        return part

    monkeypatch.setattr(StoredWeights, "rows", watched)
    export(folder / "run", tmp_path / "rows", options=ExportOptions("bfloat16"))
    assert all(size <= max(4096, one_row) for size, one_row in asked) and len(asked) > 40
    for path in (tmp_path / "whole").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "rows" / path.name).read_bytes()
    whole, by_rows = (
        json.loads((tmp_path / n / "manifest.json").read_text())["files"] for n in ("whole", "rows")
    )
    assert whole["model.safetensors"] == by_rows["model.safetensors"]
