"""What export writes, from which checkpoints, over which folders."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
import torch
from checkpoints import relist
from conftest import ROOT
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_run import save_run, small_config, write_shards

from mmscale.checkpoint.run_folder import load_run
from mmscale.cli import main
from mmscale.config_file import dump_config
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError
from mmscale.release.export import ExportOptions, export
from mmscale.release.open_release import is_release, load_release


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("made")
    write_shards(made / "shards", count=4)
    save_run(small_config(made / "run", made / "shards"), steps=(5, 9))
    save_run(small_config(made / "other", made / "shards"), steps=(21,))
    return made


def tensors_of(release):
    return {n: t for path in release.glob("*.safetensors") for n, t in load_file(path).items()}


def test_the_mean_of_runs(folder, tmp_path, capsys):
    main(
        [
            "export",
            str(folder / "run"),
            "--merge",
            str(folder / "other"),
            "--out",
            str(tmp_path / "out"),
            "--json",
        ]
    )
    assert json.loads(capsys.readouterr().out)["step"] == 9
    first, second = (
        dict(load_run(folder / name)[0].model.named_parameters()) for name in ("run", "other")
    )
    for name, tensor in tensors_of(tmp_path / "out").items():
        torch.testing.assert_close(tensor, (first[name] + second[name]) / 2, rtol=1e-6, atol=1e-7)
        assert (
            name.endswith("norm.weight")
            or tensor.dim() == 1
            or not torch.equal(tensor, first[name])
        )
    assert "mean of the weights of | run (step 9" in (tmp_path / "out" / "README.md").read_text()


def test_runs_that_do_not_fit_are_not_merged(folder, tmp_path):
    config = small_config(tmp_path / "wide", folder / "shards")
    config.model.hidden = 64
    wide = save_run(config)
    with pytest.raises(UserError, match=r"--merge .*wide: its model\.hidden is another"):
        export(folder / "run", tmp_path / "out", options=ExportOptions(merge=[wide]))
    foreign = save_run(small_config(tmp_path / "foreign", folder / "shards"))
    Tokenizer.train(["other words entirely"] * 3, 300).save(foreign / "tokenizer.json")
    with pytest.raises(UserError, match="its tokenizer is another"):
        export(folder / "run", tmp_path / "out", options=ExportOptions(merge=[foreign]))
    assert not (tmp_path / "out").exists()


def test_shard_sizes_and_types_that_are_none(folder, tmp_path, capsys):
    for more, message in (
        (["--shard-size", "many"], "--shard-size many: no size"),
        (["--shard-size", "0"], "--shard-size 0: no size"),
        (["--shard-size", "9" * 400], "999: no size"),
        (["--as", "qwen3", "--merge", "x"], "--merge: not with --as qwen3"),
        (["--checkpoint", str(tmp_path / "none")], "no such checkpoint"),
        (["--sign-key", str(tmp_path / "none")], "cannot be read"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["export", str(folder / "run"), "--out", str(tmp_path / "out"), *more])
        assert caught.value.code == 2 and message in capsys.readouterr().err
    main(["export", str(folder / "run"), "--out", str(tmp_path / "out"), "--shard-size", "0.02MB"])
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2


def test_a_config_that_changed_is_told(folder, tmp_path):
    run = save_run(small_config(tmp_path / "run", folder / "shards"))
    config = dataclasses.replace(small_config(tmp_path / "run", folder / "shards"))
    config.model.hidden = 64
    (run / "config.yaml").write_text(dump_config(config))
    with pytest.raises(
        UserError, match=r"has shape \[48, 32\] in the checkpoint, the model needs \[64, 32\]"
    ):
        export(run, tmp_path / "out")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_shards(folder / "shards")
    return save_run(small_config(folder / "run", folder / "shards"), steps=(5, 9))


def test_a_given_checkpoint_is_exported(run_dir, tmp_path):
    facts = export(run_dir, tmp_path / "out", run_dir / "checkpoints" / "step-00000005")
    assert facts["step"] == 5
    with pytest.raises(UserError, match="no such checkpoint"):
        export(run_dir, tmp_path / "other", run_dir / "checkpoints" / "step-00000006")
    elsewhere = shutil.copytree(
        run_dir / "checkpoints" / "step-00000005", tmp_path / "step-00000009"
    )
    with pytest.raises(
        UserError, match=r"step-00000009: is not in .*run/checkpoints; give the run that it"
    ):
        export(run_dir, tmp_path / "other", elsewhere)


def test_export_replaces_an_earlier_release_and_nothing_else(run_dir, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    export(run_dir, out, run_dir / "checkpoints" / "step-00000005")
    export(run_dir, out)
    assert load_release(out)[1]["step"] == 9
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.txt.*another folder"):
        export(run_dir, out)
    assert (out / "thesis.txt").exists() and is_release(out)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="not empty"):
        export(run_dir, tmp_path / "plain")


KILLED = """
import os, sys
from pathlib import Path
from mmscale.release.export import export
rename = os.rename
def rename_and_die(old, new):
    rename(old, new)
    if str(new).endswith(".old"):
        os.kill(os.getpid(), 9)
os.rename = rename_and_die
export(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_an_export_killed_between_two_releases_leaves_the_old_one(run_dir, tmp_path):
    out = tmp_path / "out"
    export(run_dir, out, run_dir / "checkpoints" / "step-00000005")
    done = subprocess.run([sys.executable, "-c", KILLED, run_dir, out], cwd=ROOT, check=False)
    assert done.returncode == -9 and not out.exists()
    with pytest.raises(UserError, match="not one of float32"):
        export(run_dir, out, options=ExportOptions("int3"))
    with pytest.raises(UserError, match="--ema: the run kept no"):
        export(run_dir, out, options=ExportOptions(ema=True))
    assert load_release(out)[1]["step"] == 5, "the next one puts it back, whatever comes of it"
    export(run_dir, out)
    assert load_release(out)[1]["step"] == 9 and [path.name for path in tmp_path.iterdir()] == [
        "out"
    ]


def test_a_failed_export_leaves_nothing(run_dir, tmp_path):
    spoilt = shutil.copytree(run_dir, tmp_path / "run")
    (file,) = (spoilt / "checkpoints" / "step-00000009").glob("*.safetensors")
    tensors = load_file(file)
    name = next(name for name in tensors if name.startswith("model."))
    tensors[name].view(-1)[0] = float("nan")

    with safe_open(file, "pt") as held:
        metadata = held.metadata()
    save_file(tensors, file, metadata=metadata)
    relist(file.parent)
    with pytest.raises(UserError, match="not finite"):
        export(spoilt, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_without_checkpoint_says_what_to_do(run_dir, tmp_path):
    empty = shutil.copytree(run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(UserError, match="no complete checkpoint; train it"):
        export(empty, tmp_path / "out")
    with pytest.raises(UserError, match="not a run directory"):
        export(tmp_path / "nothing", tmp_path / "out")
