"""python examples/train_from_python.py

Trains a small model from Python, without a config file, and scores it.

The config is built from the same objects that a YAML file is read into; `mmscale train --keys`
lists every key. Started again with the same --dir, the run resumes: a finished one is only scored.

Expect half a minute on two cores, and held-out scores far above chance, which is 0.1.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from mmscale.config import (
    Config,
    DataConfig,
    EvalConfig,
    MediaConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    RunConfig,
    SetConfig,
    TaskConfig,
    TokenizerConfig,
    TrainConfig,
)
from mmscale.demo.digits import build_digits
from mmscale.evaluate.run import evaluate, format_table
from mmscale.train.loop import train

# Seen in training once an epoch: written digits, spoken digits, captions in English and Mandarin.
TASKS = [
    TaskConfig(input=["image"], prompt="digit", target="json.label"),
    TaskConfig(input=["audio"], prompt="word", target="json.word"),
    TaskConfig(objective="contrastive", between=["image", "text"], match="json.digit"),
]


def small_config(folder: Path) -> Config:
    """A small model on the digits of ``folder``."""
    held_out = [str(folder / "digits" / "test")]
    config = Config(
        description="A small example on handwritten and spoken digits",
        run=RunConfig(dir=str(folder / "run"), tensorboard=False),
        media=MediaConfig(image_height=16, image_width=16, image_patch=8),
        model=ModelConfig(
            width=64,
            layers=2,
            heads=4,
            kv_heads=2,
            head_dim=16,
            hidden=128,
            stem_width=16,
            embed_dim=32,
            image_stem="cnn",
        ),
        data=DataConfig(
            seq_len=256,
            sequences=2,
            workers=0,
            tokenizer=TokenizerConfig(vocab_size=320),
            sets={"digits": SetConfig(shards=[str(folder / "digits" / "train")], tasks=TASKS)},
        ),
        train=TrainConfig(
            steps=150,
            micro_batch=2,
            precision="fp32",
            optimizer=OptimizerConfig(lr=4e-3, warmup_steps=10),
        ),
        parallel=ParallelConfig(threads=1),  # more only wait for each other in so small a model
        eval={
            "pictures": EvalConfig(
                input=["image"], prompt="digit", target="json.label", shards=held_out
            ),
            "speech": EvalConfig(
                input=["audio"], prompt="word", target="json.word", shards=held_out
            ),
        },
    )
    config.check()  # rules between keys, as for a file
    return config


def train_small(folder: Path) -> Path:
    """Build the data, train, and return the run's folder; what is done already is not repeated."""
    build_digits(folder / "digits", samples=120)
    result = train(small_config(folder))
    print(f"{result.run_dir}: {result.parameters:,} parameters, {result.steps} steps")
    return Path(result.run_dir)


def main() -> None:
    """Train and score."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[2])
    parser.add_argument("--dir", type=Path, help="data and run go here; default: a new folder")
    folder = parser.parse_args().dir or Path(tempfile.mkdtemp(prefix="mmscale-"))
    scores = evaluate(train_small(folder))
    print(format_table(scores))
    pictures, speech = (scores[name]["accuracy"] for name in ("pictures", "speech"))
    print(f"result: {pictures:.0%} of the pictures and {speech:.0%} of the clips are right")


if __name__ == "__main__":
    main()
