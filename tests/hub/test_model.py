"""`transformers` opens releases in a program that imports mmscale: without trust_remote_code, with
the same numbers.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_run import save_run, small_config, write_shards

import mmscale
from mmscale.errors import UserError
from mmscale.release.export import ExportOptions, export
from mmscale.release.release_manifest import write_manifest
from mmscale.release.verify_release import verify_release

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write_shards(folder / "shards", count=4)
    run = save_run(small_config(folder / "run", folder / "shards"))
    export(run, folder / "release", options=ExportOptions(max_shard_bytes=60_000))
    return folder / "release"


@pytest.fixture(scope="module")
def pair(release):
    return (
        transformers.AutoModel.from_pretrained(release),
        transformers.AutoProcessor.from_pretrained(release),
    )


def picture(seed):
    return ((np.arange(16 * 24 * 3) * (7 + seed)) % 256).astype(np.uint8).reshape(16, 24, 3)


def wave(seconds):
    return (np.sin(np.arange(int(16_000 * seconds)) * 0.05).astype(np.float32), 16_000)


def test_embeddings_are_those_of_mmscale(release, pair):
    model, processor = pair
    ours = mmscale.load(release)
    for name, values in (
        ("image", [picture(0), picture(1)]),
        ("audio", [wave(0.3), wave(0.5)]),
        ("text", ["one", "two three"]),
    ):
        inputs = processor(**{{"image": "images"}.get(name, name): values}, embed=True)
        with torch.no_grad():
            pooled = model(**inputs).pooler_output
        expected = np.stack([ours.embed(**{name: value}) for value in values])
        np.testing.assert_allclose(pooled.numpy(), expected, atol=1e-6)
        assert model(**inputs).last_hidden_state.shape[::2] == (2, 32)


@pytest.mark.parametrize(
    "how", [{}, {"num_beams": 3}, {"do_sample": True, "temperature": 0.9, "seed": 4}]
)
def test_answers_are_those_of_mmscale(release, pair, how):
    model, processor = pair
    ours = mmscale.load(release)
    images = [picture(n) for n in range(3)]
    # The prompt is left out: only one was trained.
    ids = model.generate(**processor(images=images), max_new_tokens=6, **how)
    names = {"num_beams": "beams", "temperature": "temperature", "seed": "seed"}
    decoding = {names[key]: value for key, value in how.items() if key in names}
    expected = ours.answers([{"image": image} for image in images], max_new_tokens=6, **decoding)
    assert processor.batch_decode(ids) == expected and any(expected)
    single = processor(images=images[0], prompt="which")
    assert processor.batch_decode(model.generate(**single, max_new_tokens=4)) == [
        ours.describe(images[0], max_new_tokens=4)
    ]


def test_config_tokenizer_and_generation_config(release, pair):
    config = transformers.AutoConfig.from_pretrained(release)
    assert (
        config.model_type == "mmscale"
        and config.hidden_size == 32
        and config.run_config().seed == 0
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(release)
    assert tokenizer("picture of two")["input_ids"] == pair[1].tokenizer.encode("picture of two")
    assert tokenizer.eos_token == "<|end|>"
    assert transformers.GenerationConfig.from_pretrained(release).eos_token_id == 1
    drawn = transformers.AutoModel.from_config(config)
    assert not torch.equal(drawn.fusion.embedding.weight, pair[0].fusion.embedding.weight)


def test_types_and_devices(release):
    half = transformers.AutoModel.from_pretrained(release, dtype=torch.bfloat16, device_map="cpu")
    assert half.dtype == torch.bfloat16 and half.fusion.norm.weight.dtype == torch.bfloat16
    assert transformers.AutoModel.from_pretrained(release, dtype="auto").dtype == torch.float32
    for keywords, message in (
        ({"device_map": {"a": 0, "b": 1}}, "lies on one device"),
        ({"dtype": torch.int8}, "not one of auto"),
        ({"load_in_8bit": True}, "means nothing"),
    ):
        with pytest.raises(UserError, match=message):
            transformers.AutoModel.from_pretrained(release, **keywords)


def test_a_changed_release_is_refused_and_nothing_in_it_is_run(release, tmp_path):
    copy = shutil.copytree(release, tmp_path / "copy")
    (copy / "modeling_evil.py").write_text("raise SystemExit('code of the release was run')")
    transformers.AutoModel.from_pretrained(copy)  # not in the manifest, and never looked at
    path = sorted(copy.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(UserError, match="was changed"):
        transformers.AutoModel.from_pretrained(copy)


FETCHED = {
    "attn_implementation": "evil/kernel",
    "_attn_implementation": "evil/kernel@main",
    "experts_implementation": "evil/kernel",
    "auto_map": {"AutoModel": "evil/code--x.Y", "AutoConfig": "evil/code--x.Y"},
    "quantization_config": {"quant_method": "gptq"},
}
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


@pytest.mark.parametrize("key", FETCHED)
@pytest.mark.parametrize("place", ["top", "image", "audio"])
def test_a_config_cannot_have_code_fetched(release, tmp_path, monkeypatch, place, key):
    """By `mmscale.load`, by `mmscale verify` or by AutoModel, wherever the key stands."""
    from transformers.integrations import hub_kernels

    asked = []

    def fetch(*arguments, **keywords):
        asked.append(arguments)
        raise ValueError("fetched")

    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda: True)
    monkeypatch.setattr(hub_kernels, "get_kernel", fetch)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)
    copy = shutil.copytree(release, tmp_path / "copy")
    tree = json.loads((copy / "config.json").read_text())
    model, media = tree["config"]["model"], tree["config"]["media"]
    if place == "top":
        tree[key] = FETCHED[key]
    elif place == "image":
        media |= {"image_height": 16, "image_width": 16, "image_patch": 8}
        tower = SIZES | {
            "model_type": "siglip_vision_model",
            "image_size": 16,
            "patch_size": 8,
            key: FETCHED[key],
        }
        facts = {"config": tower, "mean": [0.5] * 3, "std": [0.5] * 3}
        model |= {
            "image_stem": "pretrained",
            "image_tower": "x",
            "image_tower_config": json.dumps(facts),
        }
    else:
        tower = {
            "d_model": 16,
            "encoder_layers": 1,
            "encoder_ffn_dim": 16,
            "encoder_attention_heads": 2,
        }
        tower |= {"model_type": "whisper", "num_mel_bins": 80, key: FETCHED[key]}
        facts = {"config": tower}
        model |= {
            "audio_stem": "pretrained",
            "audio_tower": "x",
            "audio_tower_config": json.dumps(facts),
        }
    (copy / "config.json").write_text(json.dumps(tree))
    (copy / "manifest.json").unlink()
    write_manifest(copy)
    for opened in (mmscale.load, verify_release, transformers.AutoModel.from_pretrained):
        if place == "top":
            opened(copy)
        else:  # the tower was built; the release holds none
            with pytest.raises(UserError, match="is missing; copy the release"):
                opened(copy)
    assert not asked


def test_a_key_of_a_config_replaces_no_method(release, tmp_path):
    copy = shutil.copytree(release, tmp_path / "copy")
    tree = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(tree | {"run_config": 5, "to_dict": 5}))
    (copy / "manifest.json").unlink()
    write_manifest(copy)
    assert transformers.AutoModel.from_pretrained(copy).config.run_config().seed == 0


def test_mistakes_are_named(release, pair):
    model, processor = pair
    for ask, message in (
        (lambda: processor(), "give text, images or audio"),
        (lambda: processor(images=[picture(0)], text=["a", "b"]), "lists of one length"),
        (lambda: processor(images=[picture(0)], colour=1), "'colour' means nothing"),
        (lambda: processor(text="word " * 500), "shorten it"),
        (lambda: model(input_ids=torch.zeros(1, 3)), "make them with the processor"),
        (lambda: model.save_pretrained("x"), "mmscale export"),
        (lambda: processor.save_pretrained("x"), "mmscale export"),
        (lambda: model.generate(**processor(text="a"), num_beams=0), "beams=0"),
    ):
        with pytest.raises(UserError, match=message):
            ask()


def test_from_the_cache_of_the_hub(release, tmp_path):
    """Laid out as `huggingface_hub` lays it out: links from a snapshot to blobs."""
    repository, commit = tmp_path / "models--me--tiny", "a" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "blobs").mkdir()
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for path in release.iterdir():
        shutil.copy(path, repository / "blobs" / path.name)
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", path.name))
    where = {"cache_dir": tmp_path, "local_files_only": True}
    model = transformers.AutoModel.from_pretrained("me/tiny", **where)
    processor = transformers.AutoProcessor.from_pretrained("me/tiny", **where)
    assert model(**processor(text="one", embed=True)).pooler_output.shape == (1, 16)
    with pytest.raises(UserError, match="me/other: no local folder, and cannot be fetched"):
        type(model).from_pretrained("me/other", **where)
