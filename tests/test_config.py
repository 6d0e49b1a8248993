"""Config files: bases, overrides, and one-line complaints that name the key."""

from pathlib import Path

import pytest

from mmscale.config_file import (
    config_from_tree,
    describe_keys,
    dump_config,
    load_config,
    parse_override,
    to_tree,
)
from mmscale.errors import UserError
from mmscale.strict_yaml import read_yaml, write_yaml

ROOT = Path(__file__).resolve().parent.parent
MINIMAL = {"data": {"sets": {"a": {"shards": "x", "tasks": [{"target": "text"}]}}}}


def write(folder, tree, name="run.yaml"):
    path = folder / name
    path.write_text(tree if isinstance(tree, str) else write_yaml(tree), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "train").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_configs_load_and_open_with_their_command(path):
    config = load_config(path)
    assert config.data.sets
    assert str(path.relative_to(ROOT)) in path.read_text(encoding="utf-8").split("\nrun:")[0]


def test_base_is_overlaid_and_variables_are_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("MMSCALE_TEST_PLACE", "/there")
    write(tmp_path, {"width": 64, "layers": 3}, "model.yaml")
    tree = {
        **MINIMAL,
        "model": {"base": "model.yaml", "layers": 5},
        "run": {"dir": "${MMSCALE_TEST_PLACE}/${NONE:-x}"},
    }
    config = load_config(
        write(tmp_path, tree), ["train.steps=7", "train.optimizer.lr=1e-3", "data.workers=0"]
    )
    assert (config.model.width, config.model.layers) == (64, 5)
    assert config.run.dir == "/there/x"
    assert (config.train.steps, config.train.optimizer.lr, config.data.workers) == (7, 1e-3, 0)


def test_a_date_is_a_name_and_a_merged_key_may_be_given_again(tmp_path):
    text = (
        "run: {dir: 2026-09-01}\nx-common: &common {steps: 5, log_every: 7}\n"
        "train: {<<: *common, steps: 6}\n"
    )
    tree = read_yaml(text)
    assert tree["run"]["dir"] == "2026-09-01" and tree["train"] == {"steps": 6, "log_every": 7}
    assert read_yaml("a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b}\n")["b"] == {"x": 2}
    assert parse_override("run.dir=2026-99-99") == ("run.dir", "2026-99-99")


def test_a_dumped_config_reads_back_unchanged(tmp_path):
    config = load_config(ROOT / "configs" / "train" / "digits.yaml", ["seed=4"])
    again = load_config(write(tmp_path, dump_config(config)))
    assert to_tree(again) == to_tree(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.stepps=5"], r"unknown key 'train\.stepps'; did you mean 'steps'"),
        (["train.precision=fp8"], r"train\.precision: 'fp8' is not one of 'fp32', 'bf16'"),
        (["train.steps=many"], r"train\.steps: expected int, got 'many'"),
        (["train.grace_s=1e10"], r"train\.grace_s: 1\d+\.0 is above the greatest value 1e\+06"),
        ([f"train.steps={9 * 10**18}"], r"train\.steps: 9\d+ is above the greatest value 1e\+12"),
        (["parallel.timeout_s=1e300"], r"parallel\.timeout_s: 1e\+300 is above"),
        (
            ["parallel.threads=10000000000"],
            r"parallel\.threads: 10000000000 is above the greatest value 4096",
        ),
        (["description=!!timestamp foo"], r"description: .* is not a valid value"),
        (["train.steps=0"], r"train\.steps: 0 is below the least value 1"),
        (
            ["data.sets.x={shards: a, weight: .inf}"],
            r"data\.sets\.x\.weight: inf is no number to train with",
        ),
        (
            ["data.schedule=[{step: 5, weights: {x: .inf}}]"],
            r"weights\.x: inf is no number to train with",
        ),
        (["train.optimizer.lr=1e999"], r"train\.optimizer\.lr: inf is no number to train with"),
        (["train.optimizer.lr=.nan"], r"train\.optimizer\.lr: nan is no number to train with"),
        (
            [f"train.optimizer.lr={10**400}"],
            r"train\.optimizer\.lr: 1000000.* is out of range; numbers of 64 bits",
        ),
        ([f"seed={1 << 63}"], r"seed: 92233.* is out of range"),
        (["seed=" + "9" * 5000], r"seed: '999.*' is not a valid value \(Exceeds the limit"),
        (["seed=" + "[" * 5000], r"seed: .* is not a valid value \(nested too deep\)"),
        (
            ["train={steps: 1, steps: 2}"],
            r"train: .* is not a valid value \(line 1: the key 'steps' is there twice\)",
        ),
        (
            ["run.dir=!!python/name:os.system"],
            r"run\.dir: .* is not a valid value \(line 1: could not determine",
        ),
        (["train.steps"], r"'train\.steps': an override is written key=value"),
        (["model.kv_heads=3"], r"model\.kv_heads: 3 does not divide model\.heads=4"),
        (["media.image_width=65"], r"media\.image_width: 65 is not a multiple"),
        (
            [
                "media.image_patch=12",
                "media.image_width=24",
                "media.image_height=24",
                "model.image_stem=cnn",
            ],
            r"image_patch: 12 is not a power",
        ),
        (["data.sets.a.tasks=[{target: image}]"], r"data\.sets\.a\.tasks\[0\]\.target"),
        (["data.sets.a.tasks=[{target: video}]"], r"unknown field 'video'"),
        (["data.sets.a.weight=0"], r"data\.sets: every weight is 0"),
        (["data.sets={}"], r"data\.sets: no data set"),
        (["train=5"], r"train: expected a group of keys, got 5"),
        (
            ["eval.x={task: transcribe, decoder: ctc, input: [image], target: text}"],
            r"eval\.x\.input: ctc spells one clip",
        ),
        (
            ["eval.x={decoder: ctc, input: [audio], target: text}"],
            r"eval\.x\.decoder: is for transcribe",
        ),
        (["train.optimizer.eps=0"], r"train\.optimizer\.eps: 0\.0 is below"),
        (["eval.x={task: retrieve, query: image}"], r"eval\.x\.candidates: missing"),
    ],
)
def test_bad_values_name_the_key_and_the_remedy(tmp_path, overrides, message):
    path = write(tmp_path, MINIMAL)
    with pytest.raises(UserError, match=message) as caught:
        load_config(path, overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1", r"not valid YAML \(line 1: expected"),
        ("- 1\n", "a config is a mapping"),
        ("base: run.yaml\n", "more than 16 levels of 'base'"),
        ("a: &a {b: *a}\n", r"not valid YAML \(more than 100,000 values"),
        (
            "a0: &a0 {x: 1}\n"
            + "".join(f"a{n + 1}: &a{n + 1} {{x: *a{n}, y: *a{n}}}\n" for n in range(25)),
            r"not valid YAML \(more than 100,000 values",
        ),
        ("base: gone.yaml\n", r"gone\.yaml: no such config file"),
        ("1: 2\n", "key 1 is not a string"),
        (
            "train: {seed: 1}\nseed: 2\ntrain: {steps: 2}\n",
            r"YAML \(line 3: the key 'train' is there twice\)",
        ),
        ("x: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        load_config(write(tmp_path, content))


def test_not_utf8(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes(b"description: \xff\xfe\n")
    with pytest.raises(UserError, match="not UTF-8"):
        load_config(path)


def test_every_key_is_documented():
    rows = describe_keys()
    assert {
        "run.dir",
        "train.steps",
        "train.precision",
        "parallel.strategy",
        "data.workers",
        "seed",
    } <= {r[0] for r in rows}
    assert all(text for _, _, text in rows)


def test_source_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^here: unknown key 'sed'"):
        config_from_tree({**MINIMAL, "sed": 1}, "here")
