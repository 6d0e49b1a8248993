"""Releases hold exactly the weights of the run, and nothing that is damaged is opened."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_run import WORDS, save_run, small_config, write_shards

import mmscale
from mmscale.checkpoint.run_folder import load_run
from mmscale.data.index.dataset import Dataset
from mmscale.errors import UserError
from mmscale.predict.decoding import Decoding
from mmscale.release.export import ExportOptions, export
from mmscale.release.open_release import load_release


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("made")
    write_shards(made / "shards", count=4)
    save_run(small_config(made / "run", made / "shards"), steps=(5, 9))
    save_run(small_config(made / "other", made / "shards"), steps=(21,))
    return made


def test_weights_are_mapped_and_never_written_back(folder, tmp_path):
    export(folder / "run", tmp_path / "out")
    model = mmscale.load(tmp_path / "out", verify=False).predictor.model
    path = tmp_path / "out" / "model.safetensors"
    ranges = [
        tuple(int(part, 16) for part in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if str(path) in line
    ]
    for name, parameter in model.named_parameters():
        at = parameter.data_ptr()
        assert any(begin <= at < end for begin, end in ranges), f"{name} was copied"
    before = path.read_bytes()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert path.read_bytes() == before


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write_shards(folder / "shards")
    return save_run(small_config(folder / "run", folder / "shards"), steps=(5, 9))


@pytest.fixture(scope="module")
def made(run_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "release"
    return out, export(run_dir, out)


@pytest.fixture
def release(made, tmp_path):
    """A copy to spoil, without the manifest, which would report anything."""
    copy = shutil.copytree(made[0], tmp_path / "release")
    (copy / "manifest.json").unlink()
    return copy


def queries_of(predictor):
    dataset = Dataset.open(predictor.config.data.sets["small"].shards)
    return [predictor.reader.query(dataset, [field], 1) for field in ("image", "audio", "text")]


def test_a_release_gives_the_outputs_of_its_run_bit_for_bit(run_dir, made):
    direct, _ = load_run(run_dir)
    released, facts = load_release(made[0])
    queries = queries_of(direct)
    np.testing.assert_array_equal(direct.embed(queries), released.embed(queries))
    np.testing.assert_array_equal(
        direct.label_scores(queries, "which", WORDS), released.label_scores(queries, "which", WORDS)
    )
    assert direct.generate(queries, "say", Decoding(max_new_tokens=4)) == released.generate(
        queries, "say", Decoding(max_new_tokens=4)
    )
    assert facts["step"] == 9 and facts["parameters"] == made[1]["parameters"]
    for name, parameter in direct.model.named_parameters():
        assert torch.equal(parameter, dict(released.model.named_parameters())[name]), name
    older, _ = load_run(run_dir, run_dir / "checkpoints" / "step-00000005")
    assert not torch.equal(older.model.embedding.weight, direct.model.embedding.weight)


def test_shards_hold_the_same_weights_as_one_file(run_dir, made, tmp_path):
    facts = export(run_dir, tmp_path / "out", options=ExportOptions(max_shard_bytes=20_000))
    shards = [name for name in facts["files"] if name.endswith(".safetensors")]
    assert len(shards) > 2 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    assert index["metadata"]["total_size"] == 4 * facts["parameters"]
    whole, divided = load_release(made[0])[0], load_release(tmp_path / "out")[0]
    for (name, a), (_, b) in zip(
        whole.model.named_parameters(), divided.model.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    (tmp_path / "out" / shards[1]).unlink()
    with pytest.raises(UserError, match=f"{shards[1]}: missing"):
        load_release(tmp_path / "out")


def rewrite(release, **changes):
    path = release / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def with_tensors(change):
    def spoil(release):
        tensors = load_file(release / "model.safetensors")
        change(tensors)
        save_file(tensors, release / "model.safetensors")

    return spoil


def with_config(change):
    def spoil(release):
        tree = json.loads((release / "config.json").read_text())
        change(tree["config"])
        rewrite(release, config=tree["config"])

    return spoil


def cut_weights(release):
    data = (release / "model.safetensors").read_bytes()
    (release / "model.safetensors").write_bytes(data[: len(data) // 2])


def index_outside(release):
    (release / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../x.safetensors"}})
    )


SPOILT = {
    "no config": (lambda r: (r / "config.json").unlink(), r"config\.json: missing"),
    "no JSON": (lambda r: (r / "config.json").write_text("{"), r"config\.json: cannot be read"),
    "another format": (lambda r: rewrite(r, format="x"), "not an mmscale release"),
    "another version": (lambda r: rewrite(r, version=2), "upgrade mmscale"),
    "no step": (lambda r: rewrite(r, step="9"), "step is missing"),
    "unknown key": (with_config(lambda c: c.update(colour=1)), "unknown key 'colour'"),
    "wrong type": (
        with_config(lambda c: c["model"].update(width="wide")),
        r"model\.width: expected int",
    ),
    "too many layers": (
        with_config(lambda c: c["model"].update(layers=10**9)),
        r"model\.layers=1000000000",
    ),
    "small vocabulary": (
        with_config(lambda c: c["model"].update(vocab_size=64)),
        r"model\.vocab_size=64",
    ),
    "other width": (with_config(lambda c: c["model"].update(hidden=64)), r"has shape \[48, 32\]"),
    "no tokenizer": (lambda r: (r / "tokenizer.json").unlink(), r"tokenizer\.json: no such"),
    "broken tokenizer": (
        lambda r: (r / "tokenizer.json").write_text("[]"),
        r"not a tokenizer\.json",
    ),
    "no weights": (lambda r: (r / "model.safetensors").unlink(), r"model\.safetensors: missing"),
    "cut weights": (cut_weights, r"model\.safetensors: damaged"),
    "missing tensor": (with_tensors(lambda t: t.pop("norm.weight")), r"norm\.weight is missing"),
    "extra tensor": (
        with_tensors(lambda t: t.update(extra=torch.zeros(1))),
        "tensor extra is not one",
    ),
    "misshaped tensor": (
        with_tensors(lambda t: t.update({"norm.weight": torch.zeros(3)})),
        r"shape \[3\]",
    ),
    "half precision": (
        with_tensors(lambda t: t.update({"norm.weight": torch.zeros(32).half()})),
        "of types float16, float32",
    ),
    "index outside": (index_outside, "is no name of a weight file"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_spoilt_release_is_refused_in_one_line(release, fault):
    spoil, message = SPOILT[fault]
    spoil(release)
    with pytest.raises(UserError, match=message) as caught:
        load_release(release)
    assert "\n" not in str(caught.value) and "release" in str(caught.value)


def test_a_device_that_cannot_be_used_is_named(release):
    with pytest.raises(UserError, match="device 'nonsense'"):
        load_release(release, "nonsense")
