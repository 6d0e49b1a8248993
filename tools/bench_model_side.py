"""mmscale's side of `bench_model`: ``python bench_model_side.py FOLDER SIZE SEQ_LEN SEQUENCES
[KEY=VALUE …]``.

Trains on packed batches of ``FOLDER/pictures`` and ``FOLDER/speech``, decoded beforehand. Answers
every line on standard input with one of JSON: a whole step's seconds, model FLOPs, tokens, and the
rate of plain matrix products; ``profile``: and the kernels of the device that took longest.
"""

from __future__ import annotations

import json
import platform
import re
import sys
import time
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from bench_data_shards import TOKENIZER
from torch.autograd import DeviceType
from torch.profiler import profile

from mmscale.batch import Batch
from mmscale.config import Config, MediaConfig, ModelConfig, SetConfig, TaskConfig
from mmscale.config_file import config_from_tree, parse_override, set_key, to_tree
from mmscale.data.loading.assembler import Assembler
from mmscale.data.planning.step_plan import Plan
from mmscale.data.tokenizer import Tokenizer
from mmscale.model.flops import Flops
from mmscale.parallel.ranks import join_ranks
from mmscale.parallel.strategy import build_strategy, to_device
from mmscale.strict_yaml import read_yaml

ROOT = Path(__file__).resolve().parent.parent
_BATCHES = 4


def bench_config(folder: Path, size: str, seq_len: int, sequences: int) -> Config:
    """Captions of pictures of 196 tokens, contrastive pairs of the two, and words of clips; one
    micro-batch a step.
    """
    config = Config(
        model=ModelConfig(**read_yaml((ROOT / f"configs/model/{size}.yaml").read_text()))
    )
    config.model.vocab_size = config.model.vocab_size or 32_768
    config.media = MediaConfig(image_height=224, image_width=224, image_patch=16)
    pictures = [
        TaskConfig(input=["image"], target="text"),
        TaskConfig(objective="contrastive", between=["image", "text"]),
    ]
    config.data.sets = {
        "pictures": SetConfig(shards=[str(folder / "pictures")], tasks=pictures),
        "speech": SetConfig(
            shards=[str(folder / "speech")], tasks=[TaskConfig(input=["audio"], target="text")]
        ),
    }
    config.data.tokenizer.file = str(folder / TOKENIZER)
    config.data.seq_len, config.data.sequences = seq_len, sequences
    return config


def model_flops(config: Config, batch: Batch, tokens: int) -> float:
    """Of forward and backward: what the real tokens need; padding and recomputation are not
    counted.
    """
    segments = batch.segment_BL.long() + 10_000 * torch.arange(len(batch.segment_BL))[:, None]
    lengths = segments[batch.segment_BL > 0].unique(return_counts=True)[1]
    forward = Flops(config.model, config.media, config.model.vocab_size).sequence(
        {
            "tokens": tokens,
            "squares": int((lengths**2).sum()),
            "image_tokens": len(batch.image_take_T.unique()),
            "audio_tokens": len(batch.audio_take_T.unique()),
            "predictions": len(batch.objectives["next_token"]["at_T"]),
            "contrastive": len(batch.objectives["contrastive"]["at_T"]),
        }
    )
    return 3.0 * float(forward)


def matmul_rate(
    device: torch.device, width: int, hidden: int, rows: int = 4096, repeats: int = 12
) -> float:
    """FLOP/s of plain bf16 products of the feed-forward's shape, the best of three tries."""
    a = torch.randn(rows, width, device=device, dtype=torch.bfloat16)
    b = torch.randn(hidden, width, device=device, dtype=torch.bfloat16)
    best = 0.0
    for _ in range(3):
        began = now(device)
        for _ in range(repeats):
            a @ b.T
        best = max(best, repeats * 2.0 * rows * width * hidden / (now(device) - began))
    return best


def now(device: torch.device) -> float:
    """The clock when the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def most_resident_mb() -> float:
    """Largest memory so far: of the GPU if there is one, else the process's resident set."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    return int(peak[1]) / 1024


def main() -> None:
    folder, size = Path(sys.argv[1]), sys.argv[2]
    seq_len, sequences = int(sys.argv[3]), int(sys.argv[4])
    config = bench_config(folder, size, seq_len, sequences)
    tree = to_tree(config)
    for override in sys.argv[5:]:
        set_key(tree, *parse_override(override))
    config = config_from_tree(tree, "the command line")
    ranks = join_ranks(config.parallel)
    tokenizer = Tokenizer.load(config.data.tokenizer.file)
    cost = Flops(config.model, config.media, len(tokenizer)).sequence
    plan = Plan(config, tokenizer, cost=cost)
    assembler = Assembler(config, plan, tokenizer)
    steps = [plan.step(step) for step in range(_BATCHES)]
    batches = [assembler.batch(step, step.sequences) for step in steps]
    strategy = build_strategy(config, ranks)
    strategy.model.train()
    go_on = torch.zeros((), device=ranks.device)
    base_mb = most_resident_mb()
    device_name = (
        torch.cuda.get_device_name()
        if ranks.device.type == "cuda"
        else platform.processor() or "CPU"
    )
    environment = {
        "device": device_name,
        "python": platform.python_version(),
        "torch": version("torch"),
    }
    print(json.dumps(environment | {"base_mb": base_mb}), flush=True)
    for number, order in enumerate(sys.stdin):
        profiler = profile() if order.strip() == "profile" else None
        batch, tokens = batches[number % _BATCHES], steps[number % _BATCHES].tokens
        before = matmul_rate(ranks.device, config.model.width, config.model.hidden)
        began = now(ranks.device)
        with profiler or nullcontext():
            strategy.forward_backward(to_device(batch, config.parallel, ranks), last=True)
            strategy.update(number, 1e-3, lambda norm: go_on)
            seconds = now(ranks.device) - began
        after = matmul_rate(ranks.device, config.model.width, config.model.hidden)
        answer: dict[str, Any] = {
            "seconds": seconds,
            "flops": model_flops(config, batch, tokens),
            "tokens": tokens,
            "padding": 1.0 - tokens / batch.tokens_BL.numel(),
            "matmul": max(before, after),
            "peak_mb": most_resident_mb(),
        }
        if profiler is not None:
            rows = [row for row in profiler.key_averages() if row.self_device_time_total]
            rows.sort(key=lambda row: -row.self_device_time_total)
            answer["kernels"] = [
                (row.key[:100], row.self_device_time_total / 1e3, row.count)
                for row in rows[:40]
                if row.device_type != DeviceType.CPU
            ]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
