"""One run killed again and again, each time resumed on other ranks and workers, over every kind of
boundary.
"""

import json
import shutil

import pytest
from conftest import run_module
from killing import kill_when_reached, metrics

from mmscale import prf
from mmscale.config import MediaConfig
from mmscale.data.index.build_index import build_index
from mmscale.data.ingest.shard_writer import ShardWriter
from mmscale.strict_yaml import write_yaml

WORDS = ["red", "green", "blue", "white", "black"]
STEPS = 16
STAGES = [(1, 0), (4, 0), (2, 4), (3, 1)]  # ranks, loader workers


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Two sets of texts: one ends an epoch in step 2 or so, one comes in at step 6, one leaves for
    good.
    """
    root = tmp_path_factory.mktemp("chain")
    sets = {}
    for name, count in (("a", 120), ("b", 90)):
        draws = prf.Draws(prf.derive_key("chain", name))
        with ShardWriter(root / name, samples_per_shard=30) as writer:
            for number in range(count):
                text = " ".join(WORDS[draws.integer(0, 5)] for _ in range(draws.integer(2, 15)))
                writer.write(f"{name}{number}", {"txt": text.encode(), "cls": b"%d" % (number % 3)})
        build_index(root / name, MediaConfig(), progress=False)
        tasks = [{"input": ["text"], "target": "cls", "input_weight": 0.5}]
        sets[name] = {"shards": str(root / name), "tasks": tasks, "augment": {"text_drop": 0.2}}
    sets["b"] |= {"weight": 0.0, "max_epochs": 2}
    tree = {
        "data": {
            "sets": sets, "schedule": [{"step": 6, "weights": {"b": 2.0}}], "seq_len": 64,
            "sequences": 12,
            "block": 8, "group_blocks": 4, "tokenizer": {"vocab_size": 300},
        },
        "model": {"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "hidden": 24,
                  "stem_width": 4, "embed_dim": 8, "dropout": 0.1},
        "train": {"steps": STEPS, "micro_batch": 2, "precision": "fp32", "checkpoint_every": 1,
                  "optimizer": {"warmup_steps": 2}},
        "run": {"progress": False, "tensorboard": False},
    }  # fmt: skip
    (root / "chain.yaml").write_text(write_yaml(tree))
    return root / "chain.yaml"


def test_a_chain_of_kills_on_changing_ranks_and_workers_is_the_uninterrupted_run(config, tmp_path):
    calm, chaos = tmp_path / "calm", tmp_path / "chaos"
    run_module(["mmscale", "train", str(config), f"run.dir={calm}", "data.workers=0"])
    expected = metrics(calm)
    order = run_module(
        ["mmscale", "data", "order", str(config), f"run.dir={calm}", "--steps", f"0:{STEPS}"]
    ).stdout.splitlines()
    boundaries = [
        {json.loads(line)["keys"][0][0] for line in order if json.loads(line)["step"] == s}
        for s in range(STEPS)
    ]
    assert boundaries[5] == {"a"} and boundaries[6] == {"a", "b"} and boundaries[-1] == {"a"}, (
        "every boundary is crossed"
    )
    for line in map(json.loads, order):  # each key with its shard: other shards may have it, too
        assert len(line["shards"]) == len(line["keys"]) and line["set"] == line["keys"][0][0]
        assert {len(name) for name in line["shards"]} == {len("shard-000000.tar")}

    draws = prf.Draws(prf.derive_key("kills"))
    for number, (ranks, workers) in enumerate(STAGES):
        command = ["train", str(config), f"run.dir={chaos}", f"data.workers={workers}"]
        if number + 1 < len(STAGES):
            kill_when_reached(command, chaos, 4 * number + draws.integer(0, 3), ranks)
            assert len(metrics(chaos)) < STEPS, "it was killed before its end"
        else:
            run_module(["mmscale", *command], ranks=ranks)
    rows = metrics(chaos)
    assert [row["step"] for row in rows] == list(range(STEPS))
    for row, expected_row in zip(rows, expected, strict=True):
        assert row["tokens"] == expected_row["tokens"]
        assert row["loss"] == pytest.approx(expected_row["loss"], rel=1e-5)
        assert row["grad_norm"] == pytest.approx(expected_row["grad_norm"], rel=1e-3)


def test_exchanged_shards_are_refused_at_resume_or_accepted_from_there_on(config, tmp_path):
    root = tmp_path / "moved"
    shutil.copytree(config.parent, root)
    path = root / "chain.yaml"
    path.write_text(config.read_text().replace(str(config.parent), str(root)))
    command = ["mmscale", "train", str(path), f"run.dir={tmp_path / 'run'}", "data.workers=0"]
    run_module([*command, "train.steps=5"])
    before = metrics(tmp_path / "run")
    (root / "a" / "shard-000003.tar").unlink()
    build_index(root / "a", MediaConfig(), progress=False)

    refused = run_module([*command, "train.steps=9"], check=False)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert (
        "data.sets.a: " in refused.stderr
        and "shard-000003.tar was removed since step 0" in refused.stderr
    )
    assert "data.accept_changes=true" in refused.stderr
    run_module([*command, "train.steps=9", "data.accept_changes=true"])
    after = metrics(tmp_path / "run")
    assert after[:5] == before and [row["step"] for row in after] == list(range(9))
    history = json.loads((tmp_path / "run" / "data" / "history.json").read_text())
    assert [edition["from_step"] for edition in history["a"]] == [0, 5] and len(history["b"]) == 1
    run_module([*command, "train.steps=10"])  # nothing changed since: no need to accept again
