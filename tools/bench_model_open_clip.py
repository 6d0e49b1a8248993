"""open_clip's side of `bench_model`: ``PYTHON bench_model_open_clip.py BATCH``, by an interpreter
that has open_clip.

A whole training step of ViT-B/32 in bf16 (autocast), as its trainer does it, on random pictures and
texts; answers as `bench_model_side`. FLOPs are those PyTorch counts of the forward pass, times
three.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from importlib.metadata import version

import torch
from bench_data_open_clip import stand_in_for_cuda_operators
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def main() -> None:
    kept = stand_in_for_cuda_operators()
    import open_clip

    batch = int(sys.argv[1])
    model, _, _ = open_clip.create_model_and_transforms("ViT-B-32")
    model.train()
    loss_of = open_clip.ClipLoss()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2
    )
    pictures = torch.randn(batch, 3, 224, 224)
    texts = torch.randint(1, 49_000, (batch, 77))

    def forward() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            image, text, scale = model(pictures, texts)[:3]
            loss: torch.Tensor = loss_of(image, text, scale)
        return loss

    # The kernel that a CPU takes otherwise is one the counter does not know.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        forward()
    flops = 3.0 * counter.get_total_flops()
    print(
        json.dumps(
            {
                "open_clip_torch": version("open_clip_torch"),
                "torch": version("torch"),
                "python": platform.python_version(),
            }
        ),
        flush=True,
    )
    for _ in sys.stdin:
        began = time.perf_counter()
        loss = forward()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(json.dumps({"seconds": time.perf_counter() - began, "flops": flops}), flush=True)
    del kept


if __name__ == "__main__":
    main()
