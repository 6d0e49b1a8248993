"""The model card says what the run recorded."""

import json
import shutil
from pathlib import Path

import pytest
from small_run import save_run, small_config, write_shards

from mmscale.checkpoint.run_folder import load_run
from mmscale.checkpoint.run_state import RunState
from mmscale.checkpoint.score_file import write_scores
from mmscale.data.index.dataset import Dataset
from mmscale.release.card import CardFacts, model_card
from mmscale.release.export import ExportOptions, export

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write_shards(folder / "shards")
    return save_run(small_config(folder / "run", folder / "shards"), steps=(5, 9))


def test_the_card_tells_what_the_run_recorded(run_dir, tmp_path):
    shown = shutil.copytree(run_dir, tmp_path / "run")
    export(shown, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    digest = Dataset.open(load_run(run_dir)[1].data.sets["small"].shards).digests[0]
    assert (
        "a tiny test" in card
        and digest in card
        and "Not evaluated" in card
        and "Licence: not given" in card
    )
    entry = {
        "scores": {"task": "classify", "samples": 11, "skipped": 1, "accuracy": 0.75},
        "shards": ["held-out"],
        "digests": [digest],
        "command": "mmscale eval runs/tiny --task label",
    }
    write_scores(shown, 9, {"label": entry})
    export(shown, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        "accuracy 0.7500" in card
        and "1 skipped" in card
        and "mmscale eval runs/tiny --task label" in card
    )
    assert "before they were rounded" not in card
    for options, message in (
        (ExportOptions("bfloat16"), "weights of float32, before they were rounded to bfloat16"),
        (
            ExportOptions(merge=[run_dir]),
            "not the weights that `mmscale eval` scored, but the mean of several",
        ),
    ):
        export(shown, tmp_path / "out", options=options)
        card = (tmp_path / "out" / "README.md").read_text()
        assert message in card and ("accuracy 0.7500" in card) == (not options.merge)
    write_scores(shown, 5, {"label": entry})
    export(shown, tmp_path / "out")
    assert "Not evaluated at this step" in (tmp_path / "out" / "README.md").read_text()


def test_the_card_of_a_fixed_run_is_this_text(tmp_path):
    """Byte for byte: prose, tables and blank lines are the template's, what is in them is data."""
    entry = {
        "scores": {"task": "classify", "samples": 11, "skipped": 1, "accuracy": 0.75},
        "shards": ["held-out"],
        "digests": ["ab" * 32],
        "command": "mmscale eval runs/tiny --task label",
    }
    attack = {
        "scores": {"task": "robustness", "samples": 7, "pgd": 0.25, "budget": "eps | 8/255"},
        "shards": ["held-out"],
        "digests": ["ab" * 32],
        "command": "mmscale eval runs/tiny --task robustness",
    }
    write_scores(tmp_path, 9, {"la|bel": entry, "pgd\n": attack})
    row = {"step": 1, "step_s": 1440.0, "ranks": 5, "device": "cuda"}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row))
    config = small_config(tmp_path, tmp_path / "absent")
    config.description, config.licence = "{{ 7 * 7 }} | <b>ünï</b>", "CC: BY"
    config.train.steps = 90
    state = RunState(step=9, fingerprint="f" * 64, seen=1234, bad=1)
    release = CardFacts(
        run_dir=tmp_path,
        name="tiny",
        parameters=12_345,
        dtype="bfloat16",
        averaged=False,
        merged=[],
        signed=True,
        sizes={"config.json": 1000, "model.safetensors": 24_690},
    )
    assert model_card(config, state, release) == (HERE / "card.md").read_text()


def test_a_mean_of_averages_has_no_scores(tmp_path):
    config = small_config(tmp_path, tmp_path / "absent")
    config.train.ema = 0.99
    state = RunState(step=9, fingerprint="f" * 64, seen=1234, bad=1)
    release = CardFacts(
        run_dir=tmp_path,
        name="tiny",
        parameters=1,
        dtype="float32",
        averaged=True,
        merged=[("runs/a|b", state), ("runs/c", state)],
        signed=False,
        sizes={},
    )
    card = model_card(config, state, release)
    message = "but the mean of several runs' moving averages. `mmscale eval tiny` scores them.\n"
    assert card.count(message) == 2
    assert f"| mean of the weights of | a\\|b (step 9, `{'f' * 16}…`), c (step 9" in card
    assert "Of the first of the merged runs alone.\n\n## Integrity" in card


def test_an_optimizer_without_a_line_is_never_taken_for_another(tmp_path):
    config = small_config(tmp_path, tmp_path / "absent")
    config.train.optimizer.name = "sgd"
    state = RunState(step=9, fingerprint="f" * 64, seen=1234, bad=1)
    release = CardFacts(
        run_dir=tmp_path,
        name="tiny",
        parameters=1,
        dtype="float32",
        averaged=False,
        merged=[],
        signed=False,
        sizes={},
    )
    with pytest.raises(AssertionError, match="sgd"):
        model_card(config, state, release)
