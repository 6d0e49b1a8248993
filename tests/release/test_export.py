"""What export can be asked for: types, sizes, means of runs; and that it needs little memory for
any of it.
"""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import relist
from conftest import run_module
from killing import metrics
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_run import save_run, small_config, write_shards

import mmscale
from mmscale.checkpoint.run_folder import load_run
from mmscale.checkpoint.stored_weights import StoredWeights
from mmscale.cli import main
from mmscale.config_file import dump_config
from mmscale.data.tokenizer import Tokenizer
from mmscale.errors import UserError
from mmscale.release import weight_writer
from mmscale.release.export import ExportOptions, export
from mmscale.release.open_release import load_release
from mmscale.release.qwen3 import export_qwen3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("made")
    write_shards(made / "shards", count=4)
    save_run(small_config(made / "run", made / "shards"), steps=(5, 9))
    save_run(small_config(made / "other", made / "shards"), steps=(21,))
    return made


def tensors_of(release):
    return {n: t for path in release.glob("*.safetensors") for n, t in load_file(path).items()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_rounded_as_torch_rounds(folder, tmp_path, dtype):
    plain, _ = load_run(folder / "run")
    facts = export(
        folder / "run", tmp_path / "out", options=ExportOptions(dtype, max_shard_bytes=20_000)
    )
    wanted = getattr(torch, dtype)
    found = tensors_of(tmp_path / "out")
    for name, parameter in plain.model.named_parameters():
        assert found[name].dtype == wanted and torch.equal(found[name], parameter.to(wanted)), name
    sizes = [t.stat().st_size for t in (tmp_path / "out").glob("*.safetensors")]
    largest = max(p.numel() for p in plain.model.parameters()) * 2
    assert len(sizes) > 2 and max(sizes) < max(20_000, largest) + 4096
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * facts["parameters"]

    stored, widened = (
        mmscale.load(tmp_path / "out"),
        mmscale.load(tmp_path / "out", dtype="float32"),
    )
    assert stored.predictor.model.embedding.weight.dtype == wanted
    assert widened.predictor.model.embedding.weight.dtype == torch.float32
    picture = np.full((16, 24), 99, np.uint8)
    alike = float(stored.embed(image=picture) @ widened.embed(image=picture))
    assert alike == pytest.approx(1.0, abs=0.02)
    assert isinstance(stored.describe(picture, max_new_tokens=2), str)


def spoil(path, name, value):
    """Put one number into a checkpoint's tensor."""
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors[name][3] = value
    save_file(tensors, path, metadata=metadata)
    relist(path.parent)


def test_values_beyond_float16_are_named(folder, tmp_path):
    run = save_run(small_config(tmp_path / "run", folder / "shards"))
    (path,) = run.glob("checkpoints/*/*.safetensors")
    spoil(path, "model.norm.weight", 70_000.0)
    with pytest.raises(
        UserError, match=r"model\.norm\.weight holds values beyond the range of float16"
    ):
        export(run, tmp_path / "out", options=ExportOptions("float16"))
    export(run, tmp_path / "out", options=ExportOptions("bfloat16"))


def test_memory_is_bounded_by_rows_not_by_tensors(folder, tmp_path, monkeypatch):
    """With 4 kB at once, no tensor of the model is ever whole in memory, and the files are the same
    bytes.
    """
    export(folder / "run", tmp_path / "whole", options=ExportOptions("bfloat16"))
    monkeypatch.setattr(weight_writer, "_ROWS_BYTES", 4096)
    asked = []
    rows = StoredWeights.rows

    def watched(self, name, start, stop):
        found = rows(self, name, start, stop)
        asked.append((found.numel() * 4, found[:1].numel() * 4))
        return found

    monkeypatch.setattr(StoredWeights, "rows", watched)
    export(folder / "run", tmp_path / "rows", options=ExportOptions("bfloat16"))
    assert all(size <= max(4096, one_row) for size, one_row in asked) and len(asked) > 40
    for path in (tmp_path / "whole").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "rows" / path.name).read_bytes()
    one, other = (
        json.loads((tmp_path / n / "manifest.json").read_text())["files"] for n in ("whole", "rows")
    )
    assert one["model.safetensors"] == other["model.safetensors"]


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
    one, other = (
        dict(load_run(folder / name)[0].model.named_parameters()) for name in ("run", "other")
    )
    for name, tensor in tensors_of(tmp_path / "out").items():
        torch.testing.assert_close(tensor, (one[name] + other[name]) / 2, rtol=1e-6, atol=1e-7)
        assert (
            name.endswith("norm.weight") or tensor.dim() == 1 or not torch.equal(tensor, one[name])
        )
    assert "mean of the weights of | run (step 9" in (tmp_path / "out" / "README.md").read_text()


def test_a_qwen3_folder_is_of_the_type_and_sizes_asked_for(folder, tmp_path):
    plain, _ = load_run(folder / "run")
    sizes = ["--dtype", "bfloat16", "--shard-size", "20kB", "--as", "qwen3"]
    main(["export", str(folder / "run"), "--out", str(tmp_path / "out"), *sizes])
    found = tensors_of(tmp_path / "out")
    assert found and {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    wanted = plain.model.embedding.weight.to(torch.bfloat16)
    assert torch.equal(found["model.embed_tokens.weight"], wanted)
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    older = folder / "run" / "checkpoints" / "step-00000005"
    assert export_qwen3(folder / "run", tmp_path / "older", older)["step"] == 5


def test_a_qwen3_folder_that_cannot_be_written_is_not_there(folder, tmp_path, monkeypatch):
    run = save_run(small_config(tmp_path / "run", folder / "shards"))
    (path,) = run.glob("checkpoints/*/*.safetensors")
    spoil(path, "model.norm.weight", float("nan"))
    with pytest.raises(
        UserError, match=r"step-00000005: model\.norm\.weight holds values that are not finite"
    ):
        export_qwen3(run, tmp_path / "out")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weight_writer, "write_header", full)
    with pytest.raises(UserError, match=r"out: cannot be written \(.*No space left"):
        export_qwen3(folder / "run", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


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


def test_weights_are_mapped_and_never_written_back(folder, tmp_path):
    export(folder / "run", tmp_path / "out")
    model = mmscale.load(tmp_path / "out", verify=False).predictor.model
    path = tmp_path / "out" / "model.safetensors"
    ranges = [
        tuple(int(part, 16) for part in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if str(path) in line
    ]
    for name, parameter in model.named_parameters():
        at = parameter.data_ptr()
        assert any(begin <= at < end for begin, end in ranges), f"{name} was copied"
    before = path.read_bytes()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert path.read_bytes() == before


def test_every_file_of_the_hugging_face_layout(folder, tmp_path):
    facts = export(folder / "run", tmp_path / "out")
    assert set(facts["files"]) == {
        "README.md", "config.json", "generation_config.json", "manifest.json", "model.safetensors",
        "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (
        config["model_type"] == "mmscale"
        and config["hidden_size"] == 32
        and config["num_hidden_layers"] == 2
    )
    media = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    assert (media["image_height"], media["sample_rate"]) == (16, 16_000)


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


def test_the_card_estimates_emissions_from_what_was_recorded(folder, tmp_path):
    config = small_config(tmp_path / "run", folder / "shards")
    config.run.watts, config.run.co2_g_per_kwh = 500.0, 400.0
    run = save_run(config)
    export(run, tmp_path / "out")
    assert "Not known: the run's metrics.jsonl" in (tmp_path / "out" / "README.md").read_text()
    rows = [{"step": step, "step_s": 1440.0, "ranks": 4, "device": "cuda"} for step in range(5)]
    text = "".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "step": 5}])
    damaged = [
        json.dumps({**rows[0], **one})
        for one in (
            {"step_s": "a"},
            {"step": None},
            {"ranks": []},
            {"device": 1},
            {"step_s": 10**400},
        )
    ]
    # The last line was cut by a crash.
    (run / "metrics.jsonl").write_text("\n".join([*damaged, "[" * 100_000, text]) + '{"step": ')
    export(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    # 5 steps x 1440 s x 4 ranks = 8 rank-hours, x 500 W = 4 kWh, x 400 g = 1.6 kg.
    assert "About 1.6 kg CO₂: 8 rank-hours" in card and "4 kWh, at 400 g a kWh" in card


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_fill_their_own_shards(folder, tmp_path, ranks):
    export(
        folder / "run", tmp_path / "out", options=ExportOptions("bfloat16", max_shard_bytes=20_000)
    )
    done = run_module(["checkpoint.fill_ranks", str(tmp_path / "out")], ranks=ranks)
    assert done.stderr.count(": filled") == ranks


def test_a_run_begins_with_a_release(folder, tmp_path, small_run):
    """It takes over weights and tokenizer; a linear head that the release lacks is new."""
    config = ["mmscale", "train", "configs/train/digits.yaml", *small_run]
    plain = "data.sets.digits.tasks=[{input: [image], prompt: digit, target: json.label}]"
    run_module([*config, plain, "train.steps=2", f"run.dir={tmp_path}/first"])
    export(tmp_path / "first", tmp_path / "release")
    begun = [
        f"run.dir={tmp_path}/second",
        f"model.init_from={tmp_path}/release",
        "data.tokenizer.vocab_size=999",
    ]
    head = (
        "data.sets.digits.tasks=[{input: [image], prompt: digit, target: json.label},"
        " {objective: classify, input: [image], target: json.digit}]"
    )
    run_module([*config, head, *begun, "train.steps=1", "train.optimizer.lr=0"])
    one, _ = load_release(tmp_path / "release")
    two, _ = load_run(tmp_path / "second")
    assert two.tokenizer.digest == one.tokenizer.digest
    new = dict(two.model.named_parameters())
    for name, parameter in one.model.named_parameters():
        assert torch.equal(parameter, new.pop(name)), name
    assert new and all(name.startswith("class_heads.") for name in new)
    done = run_module(
        [*config, head, *begun, "run.dir=" + str(tmp_path / "third"), "model.hidden=64"],
        check=False,
    )
    assert done.returncode == 2 and "set model.* as its" in done.stderr
    Tokenizer.train(["one two three"], 300).save(tmp_path / "other.json")
    for number, (wrong, told) in enumerate(
        (
            ("model.rope_theta=500", "model.rope_theta=500: .* was trained with 10000"),
            (
                f"data.tokenizer.file={tmp_path}/other.json",
                "is not the tokenizer of model.init_from",
            ),
            ("parallel.strategy=zero2", "go on with any strategy from its first checkpoint"),
        )
    ):
        done = run_module(
            [*config, head, *begun, f"run.dir={tmp_path}/wrong{number}", "train.steps=1", wrong],
            check=False,
        )
        assert done.returncode == 2 and re.search(told, done.stderr), done.stderr
    run_module(
        [*config, head, *begun, "train.steps=2", "parallel.strategy=zero2"]
    )  # as the line told
    assert len(metrics(tmp_path / "second")) == 2


def test_a_config_that_changed_is_told(folder, tmp_path):
    run = save_run(small_config(tmp_path / "run", folder / "shards"))
    config = dataclasses.replace(small_config(tmp_path / "run", folder / "shards"))
    config.model.hidden = 64
    (run / "config.yaml").write_text(dump_config(config))
    with pytest.raises(
        UserError, match=r"has shape \[48, 32\] in the checkpoint, the model needs \[64, 32\]"
    ):
        export(run, tmp_path / "out")
