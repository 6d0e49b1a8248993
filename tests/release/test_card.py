"""The model card says what the run recorded."""

import shutil

import pytest
from small_run import save_run, small_config, write_shards

from mmscale.checkpoint.run_folder import load_run
from mmscale.checkpoint.score_file import write_scores
from mmscale.data.index.dataset import Dataset
from mmscale.release.export import ExportOptions, export


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
    """A copy to spoil, without the manifest, which would tell of anything."""
    copy = shutil.copytree(made[0], tmp_path / "release")
    (copy / "manifest.json").unlink()
    return copy


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
    for options, told in (
        (ExportOptions("bfloat16"), "weights of float32, before they were rounded to bfloat16"),
        (
            ExportOptions(merge=[run_dir]),
            "not the weights that `mmscale eval` scored, but the mean of several",
        ),
    ):
        export(shown, tmp_path / "out", options=options)
        card = (tmp_path / "out" / "README.md").read_text()
        assert told in card and ("accuracy 0.7500" in card) == (not options.merge)
    write_scores(shown, 5, {"label": entry})
    export(shown, tmp_path / "out")
    assert "Not evaluated at this step" in (tmp_path / "out" / "README.md").read_text()
