"""Linear heads and CTC: asked as they were taught, and scored as plain loops score them."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from packings import model_config
from PIL import Image
from plans import make_plan
from small_run import WORDS, save_run, small_config, write_shards

from mmscale.checkpoint.run_folder import load_run
from mmscale.cli import main
from mmscale.config import EvalConfig, TaskConfig
from mmscale.data.loading.assembler import Assembler
from mmscale.errors import UserError
from mmscale.evaluate.classify import longest_answer
from mmscale.evaluate.run import evaluate
from mmscale.evaluate.scores import accuracy, word_error_rate
from mmscale.predict.ctc_decode import greedy_ctc
from mmscale.predict.query import count_tokens


@pytest.fixture(scope="module", params=["transformer", "rnn"])
def run_dir(request, tmp_path_factory):
    made = tmp_path_factory.mktemp(request.param)
    write_shards(made / "shards")
    config = small_config(made / "run", made / "shards")
    config.model = model_config(vocab_size=320, classes={"word": WORDS}, fusion=request.param)
    config.data.sets["small"].tasks += [
        TaskConfig(
            objective="classify", input=["image"], prompt="which", target="json.label", head="word"
        ),
        TaskConfig(objective="ctc", input=["audio"], target="json.label"),
    ]
    common = {"shards": [str(made / "shards")]}
    config.eval |= {
        "head": EvalConfig(
            task="classify",
            head="word",
            input=["image"],
            prompt="which",
            target="json.label",
            **common,
        ),
        "ctc": EvalConfig(
            task="transcribe",
            decoder="ctc",
            beams=3,
            input=["audio"],
            target="json.label",
            **common,
        ),
        "beam": EvalConfig(
            task="transcribe",
            beams=3,
            max_new_tokens=4,
            input=["audio"],
            prompt="say",
            target="text",
            **common,
        ),
    }
    return save_run(config)


def test_prediction_asks_as_training_taught(run_dir):
    """The same samples through a training batch and through queries: the same logits."""
    predictor, config = load_run(run_dir)
    plan = make_plan(config, predictor.tokenizer)
    step = plan.step(0)
    batch = Assembler(config, plan, predictor.tokenizer).batch(step, step.sequences)
    with torch.inference_mode():
        taught = predictor.model.outputs("classify", batch)[0].log_softmax(-1).numpy()
        log_probs, counts = predictor.model.outputs("ctc", batch)
    dataset = plan.sets[0].dataset
    numbers = {dataset.key(n): n for n in range(len(dataset))}
    keys = [
        key
        for row in batch.keys
        for key in row
        if key not in {fault["key"] for fault in batch.faults}
    ]
    samples = [numbers[key] for key in keys]
    assert len(samples) == len(taught) > 4
    asked = [[predictor.reader.field(dataset, "image", n)] for n in samples]
    np.testing.assert_allclose(
        predictor.class_scores(asked, "which", "word"), taught, rtol=1e-3, atol=1e-3
    )
    clips = [[predictor.reader.field(dataset, "audio", n)] for n in samples]
    assert [count_tokens(clip, config.media) for clip in clips] == counts.tolist()
    barred = np.ones(320, bool)
    barred[5 : len(predictor.tokenizer)] = barred[0] = False
    for clip, clip_log_probs, count in zip(clips, log_probs.numpy(), counts.tolist(), strict=True):
        clip_log_probs[:, barred] = -np.inf
        expected = predictor.tokenizer.decode(greedy_ctc(clip_log_probs[:count], 0))
        assert predictor.spell([clip]) == [expected]


def test_scores_are_those_of_a_plain_loop(run_dir):
    scores = evaluate(run_dir, progress=False, tasks=["head", "ctc", "beam"])
    predictor, config = load_run(run_dir)
    plan = make_plan(config, predictor.tokenizer)
    dataset = plan.sets[0].dataset
    # The picture of sample003 is cut short.
    whole = [n for n in range(len(dataset)) if dataset.key(n) != "sample003"]
    truth = [dataset.text("json.label", n) for n in whole]
    images = [[predictor.reader.field(dataset, "image", n)] for n in whole]
    best = [WORDS[int(row.argmax())] for row in predictor.class_scores(images, "which", "word")]
    assert scores["head"]["accuracy"] == pytest.approx(accuracy(truth, best))
    assert longest_answer(predictor, config.eval["head"], WORDS) == 0, (
        "a head needs no room behind the query"
    )
    everything = range(len(dataset))
    clips = [[predictor.reader.field(dataset, "audio", n)] for n in everything]
    spelled = [predictor.spell([clip], beams=3)[0] for clip in clips]
    words = [dataset.text("json.label", n) for n in everything]
    assert scores["ctc"]["wer"] == pytest.approx(word_error_rate(words, spelled))
    assert scores["beam"]["samples"] == len(dataset)
    with pytest.raises(UserError, match="the model has word"):
        predictor.class_scores(images, "which", "nose")


def predict(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "mmscale", "predict", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("run_dir", ["transformer"], indirect=True)
def test_the_command_answers_and_explains(run_dir, tmp_path, capsys):
    asked = [str(run_dir), "--text", "picture of one", "--prompt", "which"]
    done = predict(*asked, "--labels", "one,two", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["answer"] in ("one", "two") and sum(
        result["probabilities"].values()
    ) == pytest.approx(1)
    for more in (["--beams", "2"], ["--temperature", "1", "--seed", "4"], []):
        done = predict(*asked, "--max-new-tokens", "4", *more)
        assert (
            done.returncode == 0 and "no task taught the model to answer such input" in done.stderr
        )
    Image.new("RGB", (16, 16)).save(tmp_path / "black.png")
    picture = [
        str(run_dir),
        "--image",
        str(tmp_path / "black.png"),
        "--labels",
        "one,two",
        "--prompt",
    ]
    for prompt, message in (
        ("which", ""),
        ("whose", "mmscale: --prompt 'whose': such input was trained with 'which'"),
    ):
        done = predict(*picture, prompt)
        assert (
            done.returncode == 0
            and done.stderr.startswith(message)
            and bool(done.stderr) == bool(message)
        )
    for wrong, message in (
        ([str(run_dir)], "no input; give image, audio or text"),
        ([*asked, "--beams", "2", "--temperature", "1"], "beam search does not sample"),
        (
            [*asked, "--labels", "one,two", "--beams", "2"],
            "--beams: changes nothing beside --labels",
        ),
        ([*asked, "--labels", " ,"], "--labels: names no answer"),
        ([*asked, "--labels", "one,caf\udce9"], "labels: 'caf\\udce9' is no Unicode text"),
        (
            [str(run_dir), "--image", str(run_dir / "config.yaml"), "--prompt", "which"],
            "not a picture",
        ),
        ([str(run_dir.parent / "nowhere"), "--text", "x"], "not a run directory"),
    ):
        with pytest.raises(SystemExit) as left:  # here: a process each would import torch each time
            main(["predict", *wrong])
        assert left.value.code == 2 and message in capsys.readouterr().err
    done = predict(*asked[:-1], "caf\udce9")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "prompt: 'caf\\udce9' is no Unicode text" in done.stderr
