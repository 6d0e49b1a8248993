"""The command line as a user meets it: help that teaches, one line for bad input, nothing lost."""

import json
import os
import pkgutil
import shutil
import tarfile

import pytest
from conftest import ROOT, run_module

from mmscale import cli
from mmscale.cli import build_parser, main

CONFIG = "configs/train/digits.yaml"


def complaint(capsys, *arguments: str) -> str:
    """The one line a failing command prints."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 2
    lines = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("mmscale: error:")
    ]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture
def in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.stpes=3"], "unknown key 'train.stpes'; did you mean 'steps'"),
        (["train.precision=float8"], "train.precision: 'float8' is not one of 'fp32', 'bf16'"),
        (["data.prepare=", "data.sets.digits.shards=build/nowhere"], "build/nowhere"),
        (["data.tokenizer.file=build/none.json"], "build/none.json: no such tokenizer file"),
        (
            ["model.width=200000000", "model.vocab_size=5"],
            "model.vocab_size=5 is below the tokenizer's",
        ),
    ],
)
def test_train_names_the_key_or_file(capsys, in_root, small_run, tmp_path, overrides, expected):
    line = complaint(capsys, "train", CONFIG, *small_run, f"run.dir={tmp_path}", *overrides)
    assert expected in line


def test_train_names_a_release_and_a_field_that_no_sample_has(capsys, in_root, small_run, tmp_path):
    release = tmp_path / "release"
    release.mkdir()
    (release / "manifest.json").write_text("{}")
    refusal = complaint(capsys, "train", CONFIG, *small_run, f"run.dir={release}")
    assert f"run.dir={release}: is a release" in refusal and os.listdir(release) == [
        "manifest.json"
    ]
    tasks = "[{input: [image], target: json.digit}, {input: [image], target: json.digt}]"
    refusal = complaint(
        capsys,
        "train",
        CONFIG,
        *small_run,
        f"run.dir={tmp_path}/run",
        f"data.sets.digits.tasks={tasks}",
    )
    assert (
        "data.sets.digits.tasks: no sample has json.digt; the first one's JSON has " in refusal
        and "digit" in refusal
    )


def test_options_that_cannot_be_are_named_with_what_can(capsys, in_root, tmp_path):
    assert "--ranks starts processes here, --ray on a cluster" in complaint(
        capsys, "train", CONFIG, "--ray", "2", "--ranks", "2"
    )
    assert "cannot be read (Is a directory); name a .yaml file" in complaint(
        capsys, "train", str(tmp_path)
    )


def test_missing_config_and_missing_shard(capsys, in_root, small_run, small_digits, tmp_path):
    assert "no such config file" in complaint(capsys, "train", "configs/none.yaml")
    assert "no config; try:" in complaint(capsys, "train")
    copy = tmp_path / "digits"
    shutil.copytree(small_digits / "train", copy)
    (copy / "digits-000000.tar").unlink()
    line = complaint(
        capsys,
        "train",
        CONFIG,
        *small_run,
        f"data.sets.digits.shards={copy}",
        f"run.dir={tmp_path}/run",
    )
    assert "digits-000000.tar: missing" in line and "mmscale data index" in line


def test_a_picture_that_will_not_decode_is_masked_told_and_too_many_end_the_run(
    small_run, small_digits, tmp_path
):
    copy = tmp_path / "digits"
    shutil.copytree(small_digits / "train", copy)
    shard = copy / "digits-000000.tar"
    with tarfile.open(shard) as tar:
        broken = [member for member in tar if member.name.endswith(".png")][:8]
    data = bytearray(shard.read_bytes())
    for member in broken:
        data[member.offset_data + 20] ^= 0xFF
    shard.write_bytes(data)
    command = [
        "mmscale",
        "train",
        CONFIG,
        *small_run,
        f"data.sets.digits.shards={copy}",
        "train.steps=6",
    ]

    tolerant = tmp_path / "tolerant"
    run_module([*command, f"run.dir={tolerant}", "data.max_bad_fraction=0.5"])
    quarantined = [
        json.loads(line) for line in (tolerant / "quarantine.jsonl").read_text().splitlines()
    ]
    keys = {member.name.removesuffix(".png") for member in broken}
    assert quarantined and {row["key"] for row in quarantined} <= keys
    assert all(
        row["shard"] == shard.name and "CRC" in row["reason"] and row["offset"]
        for row in quarantined
    )
    rows = [json.loads(line) for line in (tolerant / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and rows[-1]["bad_samples"] == len(quarantined)

    strict = tmp_path / "strict"
    done = run_module([*command, f"run.dir={strict}", "data.max_bad_fraction=0.001"], check=False)
    assert done.returncode == 2
    assert (
        "more than data.max_bad_fraction=0.001" in done.stderr and "quarantine.jsonl" in done.stderr
    )
    assert "Traceback" not in done.stderr


def test_text_that_is_not_utf8_is_left_out_with_a_line(capsys, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "good.txt").write_text("fine", encoding="utf-8")
    (source / "bad.txt").write_bytes(b"\xff\xfe\xff")
    main(["data", "pack", str(source), "--out", str(tmp_path / "out"), "--json"])
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert (result["samples"], result["problems"]) == (1, 1)
    assert "sample 'bad' left out" in captured.err and "UTF-8" in captured.err
    main(["data", "verify", str(tmp_path / "out")])


def test_eval_and_export_explain(capsys, in_root, tmp_path):
    assert "neither a run directory" in complaint(capsys, "eval", str(tmp_path))
    assert "not a run directory" in complaint(
        capsys, "export", str(tmp_path), "--out", str(tmp_path / "o")
    )
    assert "does not divide the ranks" in complaint(
        capsys, "data", "order", CONFIG, "--steps", "0:1", "--world", "4", "--nodes", "3"
    )
    assert "write A:B" in complaint(capsys, "data", "order", CONFIG, "--steps", "5")
    assert "a rank counts from 0" in complaint(
        capsys, "data", "order", CONFIG, "--steps", "0:1", "--world", "2", "--rank", "2"
    )


def test_resume_refuses_what_does_not_fit(small_run, small_digits, tmp_path):
    """And leaves what run.dir says as it was: export and eval read it beside the old weights."""

    def contents() -> dict[str, bytes]:
        paths = [*tmp_path.glob("*.yaml"), *tmp_path.glob("*.json"), *tmp_path.glob("data/*")]
        return {str(path.relative_to(tmp_path)): path.read_bytes() for path in paths}

    command = ["mmscale", "train", CONFIG, *small_run, f"run.dir={tmp_path}", "train.steps=2"]
    run_module(command)
    before = contents()
    assert before.keys() > {"config.yaml", "classes.json", "tokenizer.json", "data/history.json"}
    other_shards = [f"data.sets.digits.shards={small_digits}/test", "data.accept_changes=true"]
    for more, expected in (
        (["seed=5"], "was trained on other data or another order"),
        (["model.hidden=64"], "was model.* changed since it was saved?"),
        ([*other_shards, "model.hidden=64"], "was model.* changed since it was saved?"),
        (["data.seq_len=128"], "its packing changed"),
        (["train.resume=never"], "choose another run.dir"),
        (["train.steps=1"], "is past train.steps=1"),
    ):
        done = run_module([*command, *more], check=False)
        assert done.returncode == 2 and expected in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
        assert contents() == before, more


def test_a_checkpoint_that_cannot_be_written_is_one_line(small_run, tmp_path):
    command = ["mmscale", "train", CONFIG, *small_run, "train.steps=1"]
    for place, name, expected in (
        ("one", "checkpoints/.step-00000001.partial", "could not be written"),
        ("two", "checkpoints", "cannot be written to"),
    ):
        blocked = tmp_path / place / name
        blocked.parent.mkdir(parents=True)
        blocked.write_text("a file where a folder must go")
        done = run_module([*command, f"run.dir={tmp_path / place}"], check=False)
        assert done.returncode == 2 and expected in done.stderr, done.stderr
        assert [line for line in done.stderr.splitlines() if "Traceback (most recent" in line] == []


def test_every_command_has_help_and_json():
    def visit(parser):
        subparsers = [
            action for action in parser._actions if hasattr(action, "choices") and action.choices
        ]
        leaves = [
            child
            for action in subparsers
            if isinstance(action.choices, dict)
            for child in action.choices.values()
        ]
        for child in leaves:
            assert child.description or child._subparsers
            yield from visit(child)
        if not leaves:
            yield parser

    leaves = list(visit(build_parser()))
    assert len(leaves) == 15
    assert all("--json" in leaf.format_help() for leaf in leaves)


def test_every_verb_has_its_file():
    """A verb that is not in its list is no command: the list and the files agree."""
    for package in (cli, cli.data):
        files = {module.name for module in pkgutil.iter_modules(package.__path__)}
        listed = {command.__name__.rpartition(".")[2] for command in package.COMMANDS}
        assert listed == files - {
            "verb",
            "manifest",
            "media_limits",
            "source_options",
            "task_pool",
        }
