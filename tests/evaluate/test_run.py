"""Evaluating a run and its release on small shards."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from small_run import WORDS, save_run, small_config, write_shards

from mmscale.checkpoint.run_folder import load_run
from mmscale.config import SCORES
from mmscale.data.index.dataset import Dataset
from mmscale.errors import UserError
from mmscale.evaluate import run
from mmscale.evaluate.run import evaluate, format_table
from mmscale.evaluate.scores import accuracy, recall_at
from mmscale.release.export import export


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("made")
    write_shards(made / "shards")
    write_shards(made / "others", count=6)
    save_run(small_config(made / "run", made / "shards"))
    return made


@pytest.fixture(scope="module")
def scores(folder):
    return evaluate(folder / "run", progress=False)


def usable(folder):
    """Samples of the shards whose picture can be decoded."""
    dataset = Dataset.open([str(folder / "shards")])
    return dataset, [n for n in range(len(dataset)) if dataset.key(n) != "sample003"]


def test_classify_equals_a_plain_loop(folder, scores):
    predictor, _ = load_run(folder / "run")
    dataset, samples = usable(folder)
    labels = sorted(WORDS)
    predicted = []
    for sample in samples:
        query = [predictor.reader.field(dataset, "image", sample)]
        predicted.append(labels[int(predictor.label_scores([query], "which", labels)[0].argmax())])
    truth = [dataset.text("json.label", sample) for sample in samples]
    result = scores["label"]
    assert result["accuracy"] == pytest.approx(accuracy(truth, predicted))
    assert result["labels"] == labels and np.sum(result["confusion"]) == 11 == result["samples"]
    assert result["task"] == "classify" and result["oversize"] == 0


def test_a_broken_sample_is_left_out_and_counted(folder, scores):
    assert scores["label"]["skipped"] + scores["label"]["samples"] == len(usable(folder)[0])
    assert scores["speech"]["samples"] == len(usable(folder)[0])  # its clip is whole


def test_retrieval_and_transcription(folder, scores):
    predictor, _ = load_run(folder / "run")
    dataset, samples = usable(folder)
    sides = [
        predictor.embed([[predictor.reader.field(dataset, field, sample)] for sample in samples])
        for field in ("image", "audio")
    ]
    match = [dataset.text("json.label", sample) for sample in samples]
    assert recall_at(*sides, match, match).items() <= scores["find"].items()
    assert set(scores["speech"]) >= {"wer", "cer", "exact", "samples", "skipped"}
    assert scores["speech"]["wer"] > 0.0


def test_equal_keys_of_two_folders_are_not_one_sample(folder, tmp_path, monkeypatch):
    config = small_config(tmp_path / "run", folder / "shards")
    both = [str(folder / "others"), str(folder / "shards")]
    config.eval = {
        name: dataclasses.replace(config.eval["find"], match=match, shards=both)
        for name, match in (("own", ""), ("keys", "key"))
    }
    matched = []

    def noted(query, candidate, query_match, candidate_match, **rest):
        assert query_match == candidate_match
        matched.append(list(query_match))
        return recall_at(query, candidate, query_match, candidate_match, **rest)

    monkeypatch.setattr(run, "recall_at", noted)
    evaluate(save_run(config), progress=False)
    dataset = Dataset.open(both)
    places = [n for n in range(len(dataset)) if dataset.key(n) != "sample003"]
    keys = [dataset.key(place) for place in places]
    assert len(set(keys)) < len(keys) == len(set(matched[0]))
    assert matched[1] == keys
    # Where shards of two folders have one name, the folder is told, too.
    shards = {dataset.shard(place) for place in places}
    assert {name.rpartition("/")[0] for name in shards} == set(both)


def test_each_kind_has_the_values_that_tune_expects_of_it(scores):
    assert {score["task"] for score in scores.values()} == set(SCORES)
    for score in scores.values():
        assert {name for name, value in score.items() if isinstance(value, float)} == set(
            SCORES[score["task"]]
        )


def test_a_run_keeps_its_scores_with_data_and_command(folder, scores):
    saved = json.loads((folder / "run" / "scores.json").read_text())
    assert saved["step"] == 5 and set(saved["entries"]) == {"label", "speech", "find"}
    entry = saved["entries"]["label"]
    assert entry["scores"] == scores["label"]
    assert entry["digests"] == Dataset.open([str(folder / "shards")]).digests
    assert entry["command"] == f"mmscale eval {folder / 'run'} --task label"


def test_a_release_scores_like_its_run(folder, scores, tmp_path):
    export(folder / "run", tmp_path / "release")
    assert evaluate(tmp_path / "release", progress=False) == scores
    assert not (tmp_path / "release" / "scores.json").exists()
    assert "accuracy" in (tmp_path / "release" / "README.md").read_text()


def test_other_shards_and_a_choice_of_scores(folder, tmp_path):
    run = shutil.copytree(folder / "run", tmp_path / "run")
    results = evaluate(run, str(folder / "others"), ["find", "classify"], progress=False)
    assert set(results) == {"label", "find"} and results["label"]["samples"] == 5
    entry = json.loads((run / "scores.json").read_text())["entries"]["find"]
    assert f"--data {folder / 'others'} --task find" in entry["command"]
    assert entry["shards"] == [str(folder / "others")]


def test_samples_longer_than_a_sequence_are_counted(folder, tmp_path):
    config = small_config(tmp_path / "run", folder / "shards")
    config.data.seq_len = 16  # the longest clip alone is 15 tokens
    result = evaluate(save_run(config), None, ["speech"], progress=False)["speech"]
    assert result["oversize"] > 0 and result["samples"] + result["oversize"] == len(
        usable(folder)[0]
    )


def test_mistakes_are_named(folder, tmp_path):
    with pytest.raises(UserError, match="unknown; there are label, speech, find"):
        evaluate(folder / "run", None, ["nonsense"], progress=False)
    with pytest.raises(UserError, match="neither a run directory"):
        evaluate(tmp_path, progress=False)
    with pytest.raises(UserError, match="elsewhere"):
        evaluate(folder / "run", str(tmp_path / "elsewhere"), progress=False)
    config = small_config(tmp_path / "run", folder / "shards")
    config.eval["label"].labels = ["cat", "dog"]
    config.eval["speech"].shards = []
    config.eval["find"].query = config.eval["find"].candidates = "image"
    config.eval["find"].match = ""
    run = save_run(config)
    for name, message in [
        ("label", "labels empty"),
        ("speech", "give --data"),
        ("find", "same field"),
    ]:
        with pytest.raises(UserError, match=rf"eval\.{name}\..*{message}"):
            evaluate(run, None, [name], progress=False)
    config = small_config(tmp_path / "bare", folder / "shards")
    config.eval = {}
    with pytest.raises(UserError, match="has no scores"):
        evaluate(save_run(config), progress=False)


def test_the_table_shows_every_score(scores):
    lines = format_table(scores).splitlines()
    assert (
        len(lines) == 4 and "accuracy" in lines[1] and "wer" in lines[2] and "recall@10" in lines[3]
    )
