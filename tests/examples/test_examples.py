"""Every example runs as a person runs it, and what it prints is true.

They share one folder, so that data, run and release are made once.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import mmscale
from mmscale.data.index.dataset import Dataset
from mmscale.demo.digits import WORDS

EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_digits) -> Path:
    """Where the examples work; the embedded data is there already."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "digits").symlink_to(small_digits)
    return folder


@pytest.fixture(scope="module")
def release(folder) -> Path:
    """What open_release.py made, and left in the folder."""
    if not (folder / "release").exists():
        run("open_release.py", folder)
    return folder / "release"


def run(name: str, folder: Path, *arguments: str) -> str:
    """What the example prints, in another current directory, which must stay empty."""
    here = folder / "here"
    here.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name, *arguments, "--dir", folder],
        cwd=here, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert not list(here.iterdir()), "an example leaves nothing where it was started"
    assert done.stdout.splitlines()[-1].startswith("result: "), "it ends with one line of result"
    return done.stdout


def losses(folder: Path, run_dir: str, name: str | None = None) -> list[float]:
    rows = map(json.loads, (folder / run_dir / "metrics.jsonl").read_text().splitlines())
    return [row["losses"][name] if name else row["loss"] for row in rows]


def test_train_from_python(folder):
    printed = run("train_from_python.py", folder)
    curve = losses(folder, "run")
    assert sum(curve[-5:]) < 0.5 * sum(curve[:5])
    scores = json.loads((folder / "run" / "scores.json").read_text())["entries"]
    shares = [int(share) / 100 for share in re.findall(r"(\d+)%", printed.splitlines()[-1])]
    for name, share in zip(("pictures", "speech"), shares, strict=True):
        assert share == pytest.approx(scores[name]["scores"]["accuracy"], abs=0.006)
        assert share >= 0.25, "2.5 times what guessing gives"


def test_own_data_set(folder):
    printed = run("own_data_set.py", folder)
    data = Dataset.open([str(folder / "colours")])
    assert printed.startswith(f"{folder / 'colours'}: 60 samples in 3 shards, ")
    assert len(data) == 60
    assert [data.text("json.label", row) for row in range(3)] == ["red", "green", "blue"]
    curve = losses(folder, "colours_run")
    assert printed.endswith("the losses are " + ", ".join(f"{loss:.3f}" for loss in curve) + "\n")
    assert len(curve) == 3 and curve[2] < curve[0]


def test_own_objective(folder):
    printed = run("own_objective.py", folder)
    first, last, spread = map(float, re.findall(r"\d+\.\d\d", printed))
    curve = losses(folder, "regress_run", "regress")
    assert (first, last) == (
        pytest.approx(curve[0], abs=0.006),
        pytest.approx(sum(curve[-5:]) / 5, abs=0.006),
    )
    assert last < spread < first, "it has learned more than the mean"
    assert losses(folder, "regress_run", "next_token")[-1] > 0, "beside an objective of ours"


def test_open_release(folder, release):
    printed = run("open_release.py", folder, "--release", str(release))
    model, data = mmscale.load(release), Dataset.open([str(folder / "digits" / "test")])
    assert printed.startswith(f"{release}: {model.parameters:,} parameters, trained for 150 steps")
    lines = re.findall(r"(.*): shows '(.*)' \((.*)%\), it is '(.*)'; says '(.*)', it", printed)
    for row, (key, label, share, truth, heard) in enumerate(lines):
        picture, clip = data.read("image", row), data.read("audio", row)
        assert (key, truth) == (data.key(row), data.text("json.label", row))
        of_all = dict(model.classify(list(WORDS["en"]), image=picture, prompt="digit"))
        assert of_all[label] == max(of_all.values()) == pytest.approx(int(share) / 100, abs=0.006)
        assert heard == model.transcribe(clip, prompt="word", max_new_tokens=8)
    right = sum(label == truth for _, label, _, truth, _ in lines)
    assert len(lines) == 12 and f"result: {right} of 12 pictures" in printed
    assert right >= 4, "guessing gets one"
    assert re.search(r"embeddings: 32 numbers, lengths \[(1\.|0\.99)", printed)


def test_search_pictures(folder):
    release = ["--release", str(folder / "search_release")]  # which the first search makes
    for word, more in {"three": [], "seven": release}.items():
        printed = run("search_pictures.py", folder, f"a picture of the number {word}", *more)
        best = re.findall(r"^  ([+-]\d\.\d+)  (\w+-\d+\.png)$", printed, re.MULTILINE)
        scores = [float(score) for score, _ in best]
        assert len(best) == 5 and scores == sorted(scores, reverse=True)
        assert all((folder / "pictures" / name).is_file() for _, name in best)
        assert f"result: {best[0][1]} fits best" in printed
        shown = [name.partition("-")[0] for _, name in best]
        assert shown.count(word) >= 4, "half a picture of five by chance"


def test_every_example_is_tested_and_opens_with_its_command():
    tests = {name.removeprefix("test_") + ".py" for name in globals() if name.startswith("test_")}
    listed = (ROOT / "examples" / "README.md").read_text()
    for name in EXAMPLES:
        text = (ROOT / "examples" / name).read_text()
        assert text.startswith(f'"""python examples/{name}'), name
        assert name in tests and f"]({name})" in listed, name
