"""The small files of a release, under the names that the Hugging Face libraries look for."""

import json

import pytest
from small_run import save_run, small_config, write_shards

from mmscale.release.export import export


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("made")
    write_shards(made / "shards", count=4)
    save_run(small_config(made / "run", made / "shards"), steps=(5, 9))
    save_run(small_config(made / "other", made / "shards"), steps=(21,))
    return made


def test_every_file_of_the_hugging_face_layout(folder, tmp_path):
    facts = export(folder / "run", tmp_path / "out")
    assert set(facts["files"]) == {
        "README.md",
        "config.json",
        "generation_config.json",
        "manifest.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (
        config["model_type"] == "mmscale"
        and config["hidden_size"] == 32
        and config["num_hidden_layers"] == 2
    )
    media = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert (media["image_height"], media["sample_rate"]) == (16, 16_000)
