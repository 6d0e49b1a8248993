"""Releases hold exactly the weights of the checkpoint, and nothing that is damaged is opened."""

import io
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from checkpoints import relist
from conftest import ROOT
from PIL import Image
from safetensors.torch import load_file, save_file
from small_run import WORDS, save_run, small_config, write_shards

import mmscale
from mmscale.checkpoint.run_folder import load_run
from mmscale.checkpoint.score_file import read_scores, write_scores
from mmscale.data.index.dataset import Dataset
from mmscale.errors import UserError
from mmscale.predict.decoding import Decoding
from mmscale.release.export import ExportOptions, export
from mmscale.release.open_release import is_release, load_release


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


def queries_of(predictor):
    dataset = Dataset.open(predictor.config.data.sets["small"].shards)
    return [predictor.reader.query(dataset, [field], 1) for field in ("image", "audio", "text")]


def test_a_release_gives_the_outputs_of_its_run_bit_for_bit(run_dir, made):
    direct, _ = load_run(run_dir)
    released, facts = load_release(made[0])
    queries = queries_of(direct)
    np.testing.assert_array_equal(direct.embed(queries), released.embed(queries))
    np.testing.assert_array_equal(
        direct.label_scores(queries, "which", WORDS), released.label_scores(queries, "which", WORDS)
    )
    assert direct.generate(queries, "say", Decoding(max_new_tokens=4)) == released.generate(
        queries, "say", Decoding(max_new_tokens=4)
    )
    assert facts["step"] == 9 and facts["parameters"] == made[1]["parameters"]
    for name, parameter in direct.model.named_parameters():
        assert torch.equal(parameter, dict(released.model.named_parameters())[name]), name
    older, _ = load_run(run_dir, run_dir / "checkpoints" / "step-00000005")
    assert not torch.equal(older.model.embedding.weight, direct.model.embedding.weight)


def test_shards_hold_the_same_weights_as_one_file(run_dir, made, tmp_path):
    facts = export(run_dir, tmp_path / "out", options=ExportOptions(max_shard_bytes=20_000))
    shards = [name for name in facts["files"] if name.endswith(".safetensors")]
    assert len(shards) > 2 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    assert index["metadata"]["total_size"] == 4 * facts["parameters"]
    one, many = load_release(made[0])[0], load_release(tmp_path / "out")[0]
    for (name, a), (_, b) in zip(
        one.model.named_parameters(), many.model.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    (tmp_path / "out" / shards[1]).unlink()
    with pytest.raises(UserError, match=f"{shards[1]}: missing"):
        load_release(tmp_path / "out")


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
    from safetensors import safe_open

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


def rewrite(release, **changes):
    path = release / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def with_tensors(change):
    def spoil(release):
        tensors = load_file(release / "model.safetensors")
        change(tensors)
        save_file(tensors, release / "model.safetensors")

    return spoil


def with_config(change):
    def spoil(release):
        tree = json.loads((release / "config.json").read_text())
        change(tree["config"])
        rewrite(release, config=tree["config"])

    return spoil


def cut_weights(release):
    data = (release / "model.safetensors").read_bytes()
    (release / "model.safetensors").write_bytes(data[: len(data) // 2])


def index_outside(release):
    (release / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "../x.safetensors"}})
    )


SPOILT = {
    "no config": (lambda r: (r / "config.json").unlink(), r"config\.json: missing"),
    "no JSON": (lambda r: (r / "config.json").write_text("{"), r"config\.json: cannot be read"),
    "another format": (lambda r: rewrite(r, format="x"), "not an mmscale release"),
    "another version": (lambda r: rewrite(r, version=2), "upgrade mmscale"),
    "no step": (lambda r: rewrite(r, step="9"), "step is missing"),
    "unknown key": (with_config(lambda c: c.update(colour=1)), "unknown key 'colour'"),
    "wrong type": (
        with_config(lambda c: c["model"].update(width="wide")),
        r"model\.width: expected int",
    ),
    "too many layers": (
        with_config(lambda c: c["model"].update(layers=10**9)),
        r"model\.layers=1000000000",
    ),
    "small vocabulary": (
        with_config(lambda c: c["model"].update(vocab_size=64)),
        r"model\.vocab_size=64",
    ),
    "other width": (with_config(lambda c: c["model"].update(hidden=64)), r"has shape \[48, 32\]"),
    "no tokenizer": (lambda r: (r / "tokenizer.json").unlink(), r"tokenizer\.json: no such"),
    "broken tokenizer": (
        lambda r: (r / "tokenizer.json").write_text("[]"),
        r"not a tokenizer\.json",
    ),
    "no weights": (lambda r: (r / "model.safetensors").unlink(), r"model\.safetensors: missing"),
    "cut weights": (cut_weights, r"model\.safetensors: damaged"),
    "missing tensor": (with_tensors(lambda t: t.pop("norm.weight")), r"norm\.weight is missing"),
    "extra tensor": (
        with_tensors(lambda t: t.update(extra=torch.zeros(1))),
        "tensor extra is not one",
    ),
    "misshaped tensor": (
        with_tensors(lambda t: t.update({"norm.weight": torch.zeros(3)})),
        r"shape \[3\]",
    ),
    "half precision": (
        with_tensors(lambda t: t.update({"norm.weight": torch.zeros(32).half()})),
        "of types float16, float32",
    ),
    "index outside": (index_outside, "is no name of a weight file"),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_spoilt_release_is_refused_in_one_line(release, fault):
    spoil, message = SPOILT[fault]
    spoil(release)
    with pytest.raises(UserError, match=message) as caught:
        load_release(release)
    assert "\n" not in str(caught.value) and "release" in str(caught.value)


def test_a_device_that_cannot_be_used_is_named(release):
    with pytest.raises(UserError, match="device 'nonsense'"):
        load_release(release, "nonsense")


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


def test_scores_of_one_step_add_up(tmp_path):
    entry = {"scores": {}, "digests": [], "command": ""}
    write_scores(tmp_path, 3, {"a": entry})
    write_scores(tmp_path, 3, {"b": entry})
    assert set(read_scores(tmp_path, 3)) == {"a", "b"} and read_scores(tmp_path, 4) == {}
    write_scores(tmp_path, 4, {"c": entry})
    assert set(read_scores(tmp_path, 4)) == {"c"}
    (tmp_path / "scores.json").write_text("[]")
    with pytest.raises(UserError, match=r"scores\.json: not a score file"):
        read_scores(tmp_path, 4)
    for wrong in (
        {},
        {**entry, "scores": 1},
        {**entry, "digests": [1]},
        {**entry, "command": None},
        [],
    ):
        tree = {"format": "mmscale-scores", "version": 1, "step": 4, "entries": {"d": wrong}}
        (tmp_path / "scores.json").write_text(json.dumps(tree))
        with pytest.raises(UserError, match=r"scores\.json: damaged \(entry 'd'\); remove it"):
            read_scores(tmp_path, 4)


def test_pictures_are_read_alike_however_they_are_held(made, tmp_path):
    model = mmscale.load(made[0])
    pixels = (np.arange(30 * 40 * 3) % 251).astype(np.uint8).reshape(30, 40, 3)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    held = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
        image,
        pixels,
    ]
    rows = [
        model.embed(image=one) for one in [*held, pixels.transpose(2, 0, 1), image.convert("RGBA")]
    ]
    for row in rows:
        np.testing.assert_array_equal(row, rows[0])
    turned = Image.fromarray(np.ascontiguousarray(np.rot90(pixels)))
    turned.getexif()[0x0112] = 6
    np.testing.assert_array_equal(model.embed(image=turned), rows[0])


def test_sounds_are_read_alike_however_they_are_held(made, tmp_path):
    model = mmscale.load(made[0])
    wave = np.sin(np.arange(4000) * 0.05).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 8000, subtype="FLOAT")
    rows = [
        model.embed(audio=one)
        for one in (
            tmp_path / "a.wav",
            (tmp_path / "a.wav").read_bytes(),
            (wave, 8000),
            (wave[:, None], 8000),
        )
    ]
    for row in rows:
        np.testing.assert_array_equal(row, rows[0])


def test_classify_answer_and_embed(run_dir, made):
    model = mmscale.load(made[0])
    predictor, _ = load_run(run_dir)
    picture = np.full((16, 24), 99, np.uint8)
    ranked = model.classify(WORDS, image=picture)
    assert sorted(label for label, _ in ranked) == sorted(WORDS)
    assert sum(share for _, share in ranked) == pytest.approx(1.0)
    assert [share for _, share in ranked] == sorted((share for _, share in ranked), reverse=True)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    query = [predictor.reader.image(buffer.getvalue())]
    scores = predictor.label_scores([query], "which", WORDS)[0]  # the prompt it was trained with
    assert ranked[0][0] == WORDS[int(scores.argmax())]
    assert (
        model.describe(picture, max_new_tokens=3)
        == predictor.generate([query], "which", Decoding(max_new_tokens=3))[0]
    )
    assert isinstance(model.transcribe((np.zeros(800, np.float32), 16000), max_new_tokens=2), str)
    assert model.embed(text="one").shape == (16,)


def test_several_trained_prompts_must_be_told_apart(made):
    model = mmscale.load(made[0])
    (small,) = model.config.data.sets.values()
    small.tasks.append(replace(small.tasks[0], prompt="count"))
    picture = np.zeros((8, 8), np.uint8)
    with pytest.raises(UserError, match="'which', 'count'"):
        model.describe(picture)
    assert isinstance(model.describe(picture, prompt="count", max_new_tokens=1), str)


def test_input_that_cannot_be_used_is_one_line(made, tmp_path):
    model = mmscale.load(made[0])
    (tmp_path / "a.png").write_bytes(b"no picture")
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    (tmp_path / "half.png").write_bytes(buffer.getvalue()[:2000])
    cases = [
        (lambda: model.embed(image=tmp_path / "none.png"), r"none\.png: cannot be read"),
        (lambda: model.embed(image=tmp_path / "a.png"), r"a\.png: not a picture"),
        (lambda: model.embed(image=np.zeros((2, 2))), "image: the array is float64"),
        (lambda: model.embed(image=3), "image: got a int"),
        (lambda: model.embed(audio=np.zeros(5)), "audio: got a ndarray"),
        (lambda: model.embed(audio=(np.zeros(5, int), 8000)), "give floats"),
        (lambda: model.embed(audio=(np.zeros(5), 0)), "audio: .*0 Hz"),
        (lambda: model.embed(), "no input"),
        (lambda: model.embed(image=np.zeros((2, 2), np.uint8), text="a"), "one at a time"),
        (lambda: model.classify([], text="a"), "labels: give a list"),
        (lambda: model.classify("ab", text="a"), "labels: give a list"),
        (lambda: model.classify(["a", 5], text="a"), "labels: got a int"),
        (lambda: model.answer(text=5), "text: got a int"),
        (lambda: model.answer(text="\ud800"), r"text: .* is no Unicode text"),
        (lambda: model.answer(text="a", prompt="\ud800"), r"prompt: .* is no Unicode text"),
        (lambda: model.answer(text="a", temperature=math.inf), "temperature=inf"),
        (lambda: model.answer(text="a", temperature=math.nan), "temperature=nan"),
        (lambda: model.answer(text="a", beams=2, length_penalty=math.nan), "length_penalty=nan"),
        (lambda: model.embed(audio=(np.zeros(5), 2**31)), "audio: .* cannot be used"),
        (lambda: model.embed(audio=(np.zeros(5), math.inf)), "audio: .* cannot be used"),
        (
            lambda: model.embed(image=Image.open(tmp_path / "half.png")),
            "image: the picture cannot be read",
        ),
    ]
    for ask, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            ask()
        assert "\n" not in str(caught.value)
