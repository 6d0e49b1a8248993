"""Attacks stay within their budget and do what they say; labels that were exchanged are found."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import save_run, small_config, write_shards

from mmscale import prf
from mmscale.checkpoint.run_folder import load_run
from mmscale.config import EvalConfig, TaskConfig
from mmscale.data.index.build_index import build_index
from mmscale.data.index.dataset import Dataset
from mmscale.data.ingest.pack import ShardWriter
from mmscale.errors import UserError
from mmscale.evaluate.classify import label_scores, labels_of
from mmscale.evaluate.label_scan import is_outlier
from mmscale.evaluate.robustness import attack_queries
from mmscale.evaluate.run import evaluate, format_table
from mmscale.evaluate.samples import EvalSamples
from mmscale.evaluate.scores import character_error_rate
from mmscale.evaluate.text_noise import with_typing_errors
from mmscale.model.attack import Budget
from mmscale.predict.query import Clip, Picture
from mmscale.release.export import export
from mmscale.train.loop import train

# No grey: normalised it is next to nothing but noise, and what a run learns of it is chance.
COLOURS = {
    "red": (230, 30, 30),
    "green": (30, 230, 30),
    "blue": (30, 30, 230),
    "yellow": (230, 230, 30),
}


def write_colours(folder, count, exchanged=()):
    """Noisy patches of a colour, named; those in ``exchanged`` are called by another name."""
    names = list(COLOURS)
    draws = prf.Draws(11)
    with ShardWriter(folder) as writer:
        for number in range(count):
            name = names[number % 4]
            pixels = np.array(COLOURS[name]) + 60 * (
                draws.uniforms(16 * 24 * 3).reshape(16, 24, 3) - 0.5
            )
            buffer = io.BytesIO()
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
            label = names[(number + 1 + number // 4 % 3) % 4] if number in exchanged else name
            writer.write(
                f"s{number:03d}",
                {"png": buffer.getvalue(), "json": json.dumps({"label": label}).encode()},
            )
    build_index(folder, small_config(folder, folder).media, progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that was never trained, with pictures, clips and texts to attack."""
    made = tmp_path_factory.mktemp("made")
    write_shards(made / "shards")
    config = small_config(made / "run", made / "shards")
    common = {"task": "classify", "shards": [str(made / "shards")], "target": "json.label"}
    config.eval = {
        "see": EvalConfig(input=["image"], prompt="which", **common),
        "hear": EvalConfig(input=["audio"], **common),
        "read": EvalConfig(input=["text"], **common),
        "both": EvalConfig(input=["text", "image", "audio"], **common),
    }
    config.robustness.image, config.robustness.steps = 6.0, 3
    save_run(config)
    return made


def samples_of(folder, name, most=0):
    predictor, config = load_run(folder / "run")
    score = config.eval[name]
    return EvalSamples(
        name=name,
        score=score,
        dataset=Dataset.open(score.shards),
        predictor=predictor,
        progress=False,
        most=most,
    )


def attacked_and_plain(folder, name, budget):
    samples = samples_of(folder, name)
    (chunk,) = samples.chunks(8)
    labels = labels_of(samples)
    return (
        samples,
        chunk,
        labels,
        attack_queries(samples.predictor, samples.score, chunk, labels, budget),
    )


def likelihood_of_truth(samples, chunk, labels, queries):
    scores = label_scores(samples.predictor, samples.score, queries, labels)
    return np.array([scores[n, labels.index(sample.answer)] for n, sample in enumerate(chunk)])


@pytest.mark.parametrize("name", ["see", "hear", "both"])
def test_an_attack_stays_within_its_budget_and_makes_the_truth_unlikely(folder, name):
    budget = Budget(6.0, 0.05, 3)
    samples, chunk, labels, worse = attacked_and_plain(folder, name, budget)
    changed = 0
    for sample, query in zip(chunk, worse, strict=True):
        assert [type(part) for part in query] == [type(part) for part in sample.queries[0]]
        for part, plain in zip(query, sample.queries[0], strict=True):
            if isinstance(part, Picture):
                assert part.pixels.dtype == np.uint8 and part.pixels.shape == plain.pixels.shape
                difference = np.abs(part.pixels.astype(int) - plain.pixels)
                assert difference.max() <= 6
                changed += difference.max() == 6
            elif isinstance(part, Clip):
                difference = np.abs(part.mel - plain.mel)
                assert part.mel.shape == plain.mel.shape and difference.max() <= 0.05 + 1e-5
                changed += difference.max() > 0.04
            else:
                assert np.array_equal(part.ids, plain.ids)
    assert changed >= len(chunk)
    before, after = (
        likelihood_of_truth(samples, chunk, labels, queries)
        for queries in ([sample.queries[0] for sample in chunk], worse)
    )
    assert (after < before).all()


def test_a_step_goes_where_finite_differences_say_the_loss_grows(folder):
    samples, chunk, labels, _ = attacked_and_plain(folder, "see", Budget(1.0, 0.0, 1))
    chunk = chunk[:1]
    plain = chunk[0].queries[0][0].pixels
    plain[:] = plain.clip(40, 215)  # nothing is cut off at black or white
    query = attack_queries(samples.predictor, samples.score, chunk, labels, Budget(4.0, 0.0, 1))[0]
    direction = np.sign(query[0].pixels.astype(int) - plain)
    draws, slopes = prf.Draws(5), {}
    for _ in range(48):
        place = draws.integer(0, 3), draws.integer(0, 16), draws.integer(0, 24)
        sides = []
        for shift in (-4, 4):
            pixels = plain.astype(int)
            pixels[place] += shift
            sides.append(
                -likelihood_of_truth(samples, chunk, labels, [[Picture(pixels.astype(np.uint8))]])[
                    0
                ]
            )
        slopes[place] = sides[1] - sides[0]
    steepest = sorted(slopes, key=lambda place: -abs(slopes[place]))[:16]
    agreeing = [np.sign(slopes[place]) * direction[place] for place in steepest]
    # 0: the random start and the step were within 1 of each other.
    assert min(agreeing) >= 0 and sum(agreeing) >= 12


def test_what_is_found_for_a_sample_does_not_depend_on_its_neighbours(folder):
    budget = Budget(6.0, 0.05, 2)
    samples, chunk, labels, together = attacked_and_plain(folder, "both", budget)
    for number in (0, 5, 9):
        (alone,) = attack_queries(samples.predictor, samples.score, [chunk[number]], labels, budget)
        for part, other in zip(alone, together[number], strict=True):
            if isinstance(part, Picture):
                # A gradient of almost 0 may turn.
                assert np.mean(part.pixels != other.pixels) < 0.01
            elif isinstance(part, Clip):
                assert np.mean(np.abs(part.mel - other.mel) > 1e-6) < 0.01


def test_the_scores_count_samples_that_are_right_both_ways(folder):
    results = evaluate(folder / "run", None, ["robustness"], progress=False)
    assert set(results) == {f"{name}, attacked" for name in ("see", "hear", "read", "both")}
    samples, chunk, labels, worse = attacked_and_plain(folder, "see", Budget(6.0, 0.05, 3))
    right = [
        [
            labels[best] == sample.answer
            for best, sample in zip(scores.argmax(1), chunk, strict=True)
        ]
        for queries in ([sample.queries[0] for sample in chunk], worse)
        for scores in [label_scores(samples.predictor, samples.score, queries, labels)]
    ]
    see = results["see, attacked"]
    assert see["accuracy"] == pytest.approx(np.mean(right[0]))
    assert see["accuracy_pgd"] == pytest.approx(np.mean(np.array(right[0]) & right[1]))
    assert see["budget"] == "pictures within 6/255, 3 steps" and "accuracy_typing_errors" not in see
    assert set(results["read, attacked"]) >= {"accuracy", "accuracy_typing_errors"}
    assert "accuracy_pgd" not in results["read, attacked"]
    both = results["both, attacked"]
    assert both["accuracy_pgd"] <= both["accuracy"] and "accuracy_typing_errors" in both
    assert len(format_table(results).splitlines()) == 5


def test_the_card_shows_the_scores_and_a_choice_of_samples_is_the_seeds(folder, tmp_path):
    evaluate(folder / "run", None, ["robustness"], progress=False)
    export(folder / "run", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        "| see, attacked | 11 | accuracy " in card
        and "--task robustness" in card
        and "Not evaluated" in card
    )
    chosen = [
        [sample.key for chunk in samples_of(folder, "see", 5).chunks() for sample in chunk]
        for _ in range(2)
    ]
    assert chosen[0] == chosen[1] and 4 <= len(chosen[0]) <= 5
    assert (
        evaluate(tmp_path / "out", None, ["robustness"], progress=False)["see, attacked"]["samples"]
        == 11
    )
    with pytest.raises(UserError, match="kinds: classify, robustness"):
        evaluate(folder / "run", None, ["nonsense"], progress=False)


def test_typing_errors():
    text = "the quick brown fox jumps over the lazy dog" * 5
    assert with_typing_errors(text, 0.0, 1) == text
    noisy = with_typing_errors(text, 0.1, 1)
    assert noisy != text and noisy == with_typing_errors(text, 0.1, 1) != with_typing_errors(
        text, 0.1, 2
    )
    assert abs(len(noisy) - len(text)) < 20
    assert 0.03 < character_error_rate([text], [noisy]) < 0.2
    chinese = "北京时间今天上午股市大涨" * 4
    assert set(with_typing_errors(chinese, 0.5, 3)) <= set(chinese)
    assert with_typing_errors("a", 1.0, 5)


def test_outliers_are_judged_within_their_label():
    losses = np.array([0.1, 0.12, 0.09, 0.11, 3.0, 2.0, 2.5, 1.5, 2.2, 2.9])
    labels = np.array([0] * 5 + [1] * 5)
    assert is_outlier(losses, labels).tolist() == [False] * 4 + [True] + [False] * 5


def colour_run(tmp_path, shards, name, **adversarial):
    steps = 60
    config = small_config(tmp_path / name, shards)
    config.model.vocab_size, config.data.tokenizer.vocab_size = 0, 300
    task = TaskConfig(input=["image"], prompt="which", target="json.label")
    config.data.sets["small"].tasks = [task]
    config.data.workers, config.data.sequences, config.parallel.threads = 0, 4, 1
    config.run.progress = config.run.tensorboard = False
    config.train.steps, config.train.precision, config.train.micro_batch = steps, "fp32", 4
    config.train.optimizer.lr, config.train.optimizer.warmup_steps = 5e-3, 5
    config.train.checkpoint_every, config.train.keep_last = max(1, steps // 2), 4
    for key, value in adversarial.items():
        setattr(config.train.adversarial, key, value)
    common = {"task": "classify", "target": "json.label", "input": ["image"], "prompt": "which"}
    config.eval = {"colour": EvalConfig(shards=[str(tmp_path / "test")], **common)}
    config.robustness.image = 50.0
    train(config)
    return tmp_path / name


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs on colours of which some names were exchanged: one as always, one adversarial."""
    made = tmp_path_factory.mktemp("colours")
    exchanged = set(range(5, 200, 13))
    write_colours(made / "train", 200, exchanged)
    write_colours(made / "test", 40)
    plain = colour_run(made, made / "train", "plain")
    hard = colour_run(made, made / "train", "hard", image=24.0, steps=2)
    return made, exchanged, plain, hard


def test_exchanged_labels_are_found_and_few_others(trained):
    _, exchanged, plain, _ = trained
    result = evaluate(plain, None, ["robustness"], progress=False)["labels of small, task 0"]
    lines = [json.loads(line) for line in (plain / "suspects.jsonl").read_text().splitlines()]
    suspects = {int(line["key"][1:]) for line in lines}
    assert result["suspects"] == len(lines)
    assert all(line["shard"].endswith(".tar") for line in lines)
    assert result["checkpoints"] == 2 and result["samples"] == 200
    assert result["suspect_share"] == pytest.approx(len(lines) / 200)
    assert len(suspects & exchanged) >= 0.8 * len(exchanged), (suspects, exchanged)
    assert len(suspects - exchanged) <= 3
    truth = [list(COLOURS)[int(line["key"][1:]) % 4] == line["model_prefers"] for line in lines]
    assert sum(truth) >= 0.8 * len(lines)
    assert result["listed"][0]["margin"] == min(line["margin"] for line in lines)


def test_adversarial_training_withstands_what_breaks_plain_training(trained):
    _, _, plain, hard = trained
    scores = [
        evaluate(run, None, ["robustness"], progress=False)["colour, attacked"]
        for run in (plain, hard)
    ]
    assert scores[0]["accuracy"] > 0.9 and scores[1]["accuracy"] > 0.9
    assert scores[1]["accuracy_pgd"] > scores[0]["accuracy_pgd"] + 0.15, scores
    export(hard, hard.parent / "out")
    assert (
        "projected gradient, 2 steps, 100% of pictures within 24/255"
        in (hard.parent / "out" / "README.md").read_text()
    )


def test_weights_end_as_the_newest_checkpoint(trained):
    """The scan goes through older checkpoints; what is scored afterwards is the newest."""
    _, _, plain, _ = trained
    predictor, _ = load_run(plain)
    from mmscale.checkpoint.run_state import list_checkpoints
    from mmscale.checkpoint.stored_weights import StoredWeights
    from mmscale.evaluate.label_scan import LabelScan

    before = predictor.model.embedding.weight.clone()
    weights = [StoredWeights(path) for path in list_checkpoints(plain / "checkpoints")]
    LabelScan(predictor, weights, False, None, False).run()
    assert torch.equal(predictor.model.embedding.weight, before) and len(weights) == 2
