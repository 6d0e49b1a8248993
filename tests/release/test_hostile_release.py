"""A release whose config a stranger wrote, manifest and all, is refused in one line."""

import json
import shutil

import pytest
from small_run import save_run, small_config, write_shards

import mmscale
from mmscale.config_file import config_from_tree
from mmscale.errors import UserError
from mmscale.release.export import export
from mmscale.release.release_manifest import write_manifest
from mmscale.release.verify_release import verify_release

EYE = {
    "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
}  # fmt: skip
EAR = {
    "model_type": "whisper", "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16, "num_mel_bins": 80, "max_source_positions": 50,
}  # fmt: skip
CHANNELS = {"mean": [0.5] * 3, "std": [0.5] * 3}
DEEP = "[" * 100_000


def model(**changes):
    return lambda config: config["model"].update(changes)


def media(**changes):
    return lambda config: config["media"].update(changes)


def eye(text=None, facts=CHANNELS, **changes):
    text = json.dumps({"config": EYE | changes, **facts}) if text is None else text
    return model(image_stem="pretrained", image_tower="x", image_tower_config=text)


def ear(text=None, **changes):
    text = json.dumps({"config": EAR | changes}) if text is None else text
    return model(audio_stem="pretrained", audio_tower="x", audio_tower_config=text)


HOSTILE = {
    "heads": (
        model(classes={f"h{n}": ["a"] for n in range(200_000)}),
        "200000 heads, but there are",
    ),
    "a dot in a head": (model(classes={"a.b": ["x", "y"]}), "'a.b' is no name of a head"),
    "an escape in a head": (model(classes={"\x1b[2K": ["x"]}), r"'\\x1b\[2K' is no name of a head"),
    "a nameless head": (model(classes={"": ["x"]}), "'' is no name of a head"),
    "sample rate": (media(sample_rate=10**9), r"media\.sample_rate: 1000000000 is above 384000"),
    "no JSON": (eye("{"), "is no tower's architecture"),
    "no text": (eye(""), "is no tower's architecture"),
    "deep JSON": (eye(DEEP), "is no tower's architecture"),
    "a list": (eye("[]"), "is no tower's architecture"),
    "no config": (eye("{}"), "is no tower's architecture"),
    "no mean": (eye(facts={"std": [0.5] * 3}), "its mean is not a number for each channel"),
    "a mean of texts": (eye(facts=CHANNELS | {"mean": ["a"] * 3}), "its mean is not"),
    "an endless std": (eye(facts=CHANNELS | {"std": [float("inf")] * 3}), "its std is not"),
    "unknown type": (eye(model_type="nope"), "cannot build this tower"),
    "no type": (eye(model_type=None), "cannot build this tower"),
    "a list of types": (eye(model_type=["vit"]), "cannot build this tower"),
    "timm": (eye(model_type="timm_wrapper", architecture="hf-hub:evil/x"), "models of timm"),
    "layers": (eye(num_hidden_layers=10**7), "a number above 1,048,576"),
    "many layers": (eye(num_hidden_layers=1 << 20), "more than 10,000 weights"),
    "layers by another name": (
        eye(model_type="vit", num_hidden_layers=1 << 20),
        "more than 10,000 weights",
    ),
    "patch 0": (eye(patch_size=0), "cannot build this tower"),
    "width of text": (eye(hidden_size="x"), "cannot build this tower"),
    "unknown activation": (eye(hidden_act="evil"), "cannot build this tower"),
    "another kind of model": (eye(model_type="bert"), r"model\.image_tower_config|its tower keeps"),
    "buffers": (eye(model_type="swin"), r"model\.image_tower_config|its tower keeps"),
    "an ear of nothing": (ear("{}"), "is no tower's architecture"),
    "an ear of many layers": (ear(encoder_layers=1 << 20), "more than 10,000 weights"),
    "an ear of huge numbers": (ear(max_source_positions=10**12), "a number above"),
    "an ear of another type": (ear(model_type="bert"), "cannot build this tower"),
    "an ear of text": (ear(d_model="x"), "cannot build this tower"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write_shards(folder / "shards", count=4)
    export(save_run(small_config(folder / "run", folder / "shards")), folder / "release")
    return folder / "release"


@pytest.mark.parametrize("fault", HOSTILE)
def test_a_hostile_config_is_refused_in_one_line(made, tmp_path, fault):
    change, message = HOSTILE[fault]
    release = shutil.copytree(made, tmp_path / "release")
    tree = json.loads((release / "config.json").read_text())
    tree["config"]["media"] |= {"image_height": 16, "image_width": 16, "image_patch": 8}
    change(tree["config"])
    (release / "config.json").write_text(json.dumps(tree))
    (release / "manifest.json").unlink()
    write_manifest(release)
    for opened in (mmscale.load, verify_release):
        with pytest.raises(UserError, match=message) as caught:
            opened(release)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
        assert "config.json" in str(caught.value)


def test_a_name_that_cannot_be_encoded_is_no_file(made, tmp_path):
    release = shutil.copytree(made, tmp_path / "release")
    tree = json.loads((release / "manifest.json").read_text())
    tree["files"]["\ud800"] = tree["files"]["config.json"]
    (release / "manifest.json").write_text(json.dumps(tree))
    for opened in (mmscale.load, verify_release):
        with pytest.raises(UserError, match=r"'\\ud800' is no name of a file"):
            opened(release)


def test_a_head_of_ones_own_is_named_before_anything_is_read():
    task = {"objective": "classify", "input": ["image"], "target": "json.kind/animal"}
    tree = {"data": {"sets": {"a": {"shards": ["x"], "tasks": [task]}}}}
    with pytest.raises(
        UserError, match=r"tasks\[0\]\.head: 'json.kind/animal' is no name of a head"
    ):
        config_from_tree(tree, "mine.yaml")
    task["head"] = "动物 kind"
    config_from_tree(tree, "mine.yaml")
