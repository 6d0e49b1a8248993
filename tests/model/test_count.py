"""The sizes in configs/model are what they say, and the count is that of the real model."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT
from packings import MEDIA, model_config

from mmscale.config import MediaConfig, ModelConfig
from mmscale.model.count import count_parameters
from mmscale.model.fusion import FusionTransformer
from mmscale.strict_yaml import read_yaml

SIZES = {"base": (125e6, 0.02), "1b": (1.0e9, 0.02), "3b": (3.0e9, 0.02), "10b": (10.0e9, 0.01)}


@pytest.mark.parametrize("name", SIZES)
def test_size(name):
    size, band = SIZES[name]
    keys = read_yaml((ROOT / f"configs/model/{name}.yaml").read_text())
    assert count_parameters(ModelConfig(**keys), MediaConfig())["total"] == pytest.approx(
        size, rel=band
    )


@pytest.mark.parametrize("changes", [{}, {"fusion": "rnn", "classes": {"a": ["x", "y"]}}])
def test_parts_add_up_to_the_real_model(changes):
    config = model_config(**changes)
    counts = count_parameters(config, MEDIA)
    total = sum(parameter.numel() for parameter in FusionTransformer(config, MEDIA).parameters())
    assert (
        counts["total"] == total == sum(count for part, count in counts.items() if part != "total")
    )
    assert counts["embedding"] == config.vocab_size * config.width
    assert ("attention" in counts) == (config.fusion == "transformer")


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "mmscale", "model", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_counts_a_model_file_and_a_training_config():
    done = command("configs/model/10b.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["total"] == pytest.approx(10.0e9, rel=0.01)
    table = command("configs/train/10b.yaml", "model.layers=1")
    assert table.returncode == 0 and "feed-forward" in table.stdout and "total" in table.stdout


def test_command_explains_what_it_lacks():
    done = command("configs/model/tiny.yaml")
    assert done.returncode == 2
    assert "vocab_size" in done.stderr and "Traceback" not in done.stderr
