"""Plans do first what training does first: the strategy of a DeepSpeed JSON, towers, others'
tokenizers.
"""

import json
from argparse import Namespace

import pytest
from test_search import made_up as made_up
from test_search import stage_2 as stage_2

from mmscale.cli.plan import _plan
from mmscale.config import Config
from mmscale.data.tokenizer import Tokenizer
from mmscale.doctor.disk_space import checkpoint_bytes
from mmscale.errors import UserError
from mmscale.train.prepare import expected_vocabulary


def plan(*overrides):
    """Facts of a plan on two GPUs, by a dry run that is made up."""
    return _plan(
        Namespace(
            config="configs/train/digits.yaml",
            overrides=overrides,
            plugins=[],
            gpus=2,
            gpu="h100",
            gpus_per_node=8,
            efficiency=0.5,
            tokens=None,
            json=True,
            no_search=True,
            storage_gbps=0.0,
            egress_per_tb=0.0,
            requests_per_million=0.0,
        )
    )


def test_a_deepspeed_json_names_the_strategy(made_up, stage_2):
    facts = plan(f"parallel.deepspeed_config={stage_2}")
    assert facts["settings"][0] == "parallel.strategy=zero2"


def tower(folder):
    """What a plan reads of a pretrained one: no weights."""
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    (folder / "config.json").write_text(
        json.dumps(sizes | {"model_type": "vit", "image_size": 16, "patch_size": 8})
    )
    (folder / "model.safetensors").touch()
    return {"model.image_stem": "pretrained", "model.image_tower": str(folder)}


def test_a_pretrained_tower_is_planned(made_up, tmp_path):
    plain, pretrained = plan(), plan(*(f"{key}={value}" for key, value in tower(tmp_path).items()))
    assert 0 < pretrained["parameters"]["total"] < plain["parameters"]["total"]


def test_a_checkpoint_with_a_pretrained_tower_has_a_size(tmp_path):
    config = Config()
    config.media.image_height = config.media.image_width = 16
    config.media.image_patch = 8
    for key, value in tower(tmp_path).items():
        setattr(config.model, key.removeprefix("model."), value)
    assert checkpoint_bytes(config) > 0
    assert not config.model.image_tower_config, "it only looked"
    config.model.image_tower = "/none"
    with pytest.raises(UserError, match="no local folder"):
        checkpoint_bytes(config)


def test_the_vocabulary_is_that_of_what_it_begins_with(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"format": "mmscale-release"}))
    Tokenizer.train(["one two three"], 300).save(tmp_path / "tokenizer.json")
    config = Config()
    usual = expected_vocabulary(config)
    config.model.init_from = str(tmp_path)
    assert expected_vocabulary(config) == 320 != usual
    config.model.init_from = str(tmp_path / "not here")
    assert expected_vocabulary(config) == usual
