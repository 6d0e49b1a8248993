"""What the checkpoints of a run hold, for tests."""

import json
from pathlib import Path

import torch
from safetensors import safe_open


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint, shards joined in the order of their offsets."""
    from mmscale.checkpoint.store import list_checkpoints

    parts: dict[str, list[tuple[list[int], torch.Tensor]]] = {}
    for path in sorted(list_checkpoints(folder / "checkpoints")[-1].glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            offsets = json.loads(file.metadata()["DCP_SHARDING_INFO"])
            for name in file.keys():  # noqa: SIM118
                parts.setdefault(name, []).append((offsets[name]["saved_offsets"], file.get_tensor(name)))
    return {
        name: torch.cat([part for _, part in sorted(found, key=lambda p: p[0])])
        for name, found in parts.items()
    }
