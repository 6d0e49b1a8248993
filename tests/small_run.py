"""A tiny run directory with a saved checkpoint, made without training, and small shards
beside it.
"""

import io
import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
from packings import MEDIA, model_config
from PIL import Image

from mmscale import prf
from mmscale.checkpoint.run_state import RetentionPolicy, RunState
from mmscale.checkpoint.store import CheckpointStore
from mmscale.config import Config, DataConfig, EvalConfig, ParallelConfig, SetConfig, TaskConfig
from mmscale.config_file import dump_config
from mmscale.data.index.build_index import build_index
from mmscale.data.ingest.pack import ShardWriter
from mmscale.data.tokenizer import Tokenizer
from mmscale.model.initialise import initialise
from mmscale.parallel.ranks import join_ranks, leave_ranks
from mmscale.parallel.strategy import build_strategy

WORDS = ["zero", "one", "two", "three"]


@contextmanager
def one_rank():
    """A process group of this process alone."""
    ranks = join_ranks(ParallelConfig(threads=1))
    try:
        yield ranks
    finally:
        leave_ranks()


def write_shards(folder: Path, count: int = 12) -> None:
    """Samples with a picture, a clip, a text and a label; sample 3 has a picture that only looks
    like one.
    """
    draws = prf.Draws(7)
    with ShardWriter(folder) as writer:
        for number in range(count):
            png, wav = io.BytesIO(), io.BytesIO()
            pixels = (draws.uniforms(20 * 20 * 3) * 255).astype(np.uint8).reshape(20, 20, 3)
            Image.fromarray(pixels).save(png, "PNG")
            wave = draws.normals(1600 * (number + 1)) * 0.1
            soundfile.write(wav, wave, 16000, format="WAV")
            fields = {
                "png": png.getvalue() if number != 3 else png.getvalue()[:200],
                "wav": wav.getvalue(),
                "txt": f"picture of {WORDS[number % 4]}".encode(),
                "json": json.dumps({"label": WORDS[number % 4]}).encode(),
            }
            writer.write(f"sample{number:03d}", fields)
    build_index(folder, MEDIA, progress=False)


def small_config(run_dir: Path, shards: Path) -> Config:
    """Two tasks, one score of every kind."""
    tasks = [
        TaskConfig(input=["image"], prompt="which", target="json.label"),
        TaskConfig(input=["audio"], prompt="say", target="text"),
        TaskConfig(objective="contrastive", between=["image", "audio"], match="json.label"),
    ]
    config = Config(
        description="a tiny test",
        media=MEDIA,
        model=model_config(vocab_size=320),
        data=DataConfig(seq_len=128, sets={"small": SetConfig(shards=[str(shards)], tasks=tasks)}),
    )
    config.run.dir = str(run_dir)
    common = {"shards": [str(shards)]}
    config.eval = {
        "label": EvalConfig(
            task="classify", input=["image"], prompt="which", target="json.label", **common
        ),
        "speech": EvalConfig(
            task="transcribe",
            input=["audio"],
            prompt="say",
            target="text",
            max_new_tokens=4,
            **common,
        ),
        "find": EvalConfig(
            task="retrieve", query="image", candidates="audio", match="json.label", **common
        ),
    }
    return config


def save_run(config: Config, steps: tuple[int, ...] = (5,)) -> Path:
    """Write run.dir: config, tokenizer and a checkpoint for each of ``steps`` (also its seed)."""
    run_dir = Path(config.run.dir)
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    Tokenizer.train([*WORDS, "picture of"] * 3, 300).save(run_dir / "tokenizer.json")
    with one_rank() as ranks:
        strategy = build_strategy(config, ranks)
        store = CheckpointStore(run_dir / "checkpoints", RetentionPolicy(9))
        for step in steps:
            initialise(strategy.model, config.model, seed=step)
            store.save(strategy.state_tensors(), RunState(step=step, fingerprint="f" * 64, seen=40))
            store.wait()
    return run_dir
