"""A recipe and a folder of shards give a config that trains; what is missing is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import run_module

from mmscale.config import MediaConfig
from mmscale.data.index.build_index import build_index
from mmscale.data.ingest.shard_writer import ShardWriter
from mmscale.errors import UserError
from mmscale.recipes.names import recipe_names, recipe_text
from mmscale.recipes.recipe import recipe_config


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Splits of short texts with a class and a topic."""
    for split, count in (("train", 60), ("dev", 8), ("test", 12)):
        with ShardWriter(tmp_path / "mail" / split, samples_per_shard=30) as writer:
            for number in range(count):
                word = ("spam", "ham")[number % 2]
                label = {"label": word, "topic": f"t{number % 3}", "date": "2026"}
                writer.write(
                    f"{number:03d}",
                    {"txt": f"{word} is in this mail {number}".encode(),
                     "json": json.dumps(label).encode()},
                )  # fmt: skip
        build_index(tmp_path / "mail" / split, MediaConfig(), progress=False)
    return tmp_path / "mail"


def test_splits_beside_train_are_scored_and_the_class_is_found(texts: Path) -> None:
    config = recipe_config("classify-text", texts)
    (data_set,) = config.data.sets.values()
    assert data_set.shards == [str(texts / "train")]
    assert [task.target for task in data_set.tasks] == ["json.label", "text"]
    assert {name: score.shards for name, score in config.eval.items()} == {
        "dev": [str(texts / "dev")],
        "test": [str(texts / "test")],
    }
    assert {score.head for score in config.eval.values()} == {"json_label"}
    assert config.run.dir == "runs/mail"


def test_what_the_user_says_goes_over_the_recipe(texts: Path) -> None:
    config = recipe_config(
        "classify-text", texts, ["train.steps=7", "data.sets.mail.augment.text_drop=0.5"],
        label="json.topic",
    )  # fmt: skip
    assert config.train.steps == 7 and config.data.sets["mail"].augment.text_drop == 0.5
    assert config.data.sets["mail"].tasks[0].target == "json.topic"


def test_a_folder_without_splits_is_learned_and_nothing_is_scored(
    texts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = recipe_config("classify-text", texts / "train")
    assert not config.eval and config.data.sets["train"].shards == [str(texts / "train")]
    assert "nothing will be scored; pack one as test" in capsys.readouterr().err


def test_what_is_missing_is_named(texts: Path, tmp_path: Path) -> None:
    def complaint(name: str, folder: Path, **fields: str) -> str:
        with pytest.raises(UserError) as caught:
            recipe_config(name, folder, **fields)
        return str(caught.value)

    assert "there are caption, classify-images" in complaint("classify", texts)
    assert "no sample has image, which classify-images learns" in complaint(
        "classify-images", texts
    )
    assert "--text FIELD" in complaint("classify-text", texts, text="json.body")
    assert "no such folder" in complaint("classify-text", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "mmscale data pack" in complaint("classify-text", tmp_path / "empty")
    shutil.copy(next((texts / "test").glob("*.tar")), tmp_path / "empty" / "a.tar")
    assert "mmscale data index" in complaint("classify-text", tmp_path / "empty")
    shutil.rmtree(texts / "train")
    assert "has dev, test, but no train" in complaint("classify-text", texts)


def test_a_class_that_cannot_be_told_is_asked_for(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "plain") as writer:
        writer.write("a", {"txt": b"text", "json": b'{"origin": "web"}'})
    build_index(tmp_path / "plain", MediaConfig(), progress=False)
    with pytest.raises(UserError, match=r"Samples have json\.origin; say it with --label FIELD"):
        recipe_config("classify-text", tmp_path / "plain")
    assert recipe_config("classify-text", tmp_path / "plain", label="json.origin")


def test_every_recipe_is_a_config_of_the_embedded_data(small_digits: Path) -> None:
    for name in recipe_names():
        config = recipe_config(name, small_digits)
        assert set(config.eval) == {"test"} and config.description == ""
        assert recipe_text(name).startswith("# ")


def test_three_commands_from_shards_to_an_answer(texts: Path, tmp_path: Path) -> None:
    """`train --recipe` with two ranks, `eval` and `predict`, by the head alone."""
    small = [
        "train.steps=40", "train.precision=fp32", "parallel.threads=1", "run.progress=false",
        "data.seq_len=256", "model={width: 32, layers: 1, heads: 2, kv_heads: 1, head_dim: 16, "
        "hidden: 64, stem_width: 8, embed_dim: 16, dropout: 0.0}", f"run.dir={tmp_path}/run",
        "train.optimizer.lr=0.01", "train.checkpoint_every=20", "data.workers=0",
    ]  # fmt: skip
    run_module(
        ["mmscale", "train", "--recipe", "classify-text", str(texts), *small, "--ranks", "2"]
    )
    scores = json.loads(run_module(["mmscale", "eval", str(tmp_path / "run"), "--json"]).stdout)
    assert scores["test"]["accuracy"] == 1.0
    ask = ["mmscale", "predict", str(tmp_path / "run"), "--text", "spam is in this mail 98"]
    told = json.loads(run_module([*ask, "--json"]).stdout)
    assert told["answer"] == "spam" and set(told["probabilities"]) == {"spam", "ham"}
    refused = run_module([*ask, "--beams", "3"], check=False)
    assert refused.returncode == 2 and "linear head answers" in refused.stderr


def test_print_config_is_a_config_of_ones_own(texts: Path, tmp_path: Path) -> None:
    ours = ["mmscale", "train", "--recipe", "classify-text", str(texts), "--print-config"]
    (tmp_path / "mine.yaml").write_text(run_module(ours).stdout)
    again = run_module(["mmscale", "train", str(tmp_path / "mine.yaml"), "--print-config"]).stdout
    assert again == (tmp_path / "mine.yaml").read_text() and "classify" in again
    refused = run_module(["mmscale", "train", "--recipe", "classify-text"], check=False)
    assert refused.returncode == 2 and "name the folder of packed samples" in refused.stderr
