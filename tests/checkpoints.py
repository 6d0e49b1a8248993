"""What the checkpoints of a run hold, for tests."""

import json
from pathlib import Path

import torch
from safetensors import safe_open


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint, shards joined by their offsets."""
    from mmscale.checkpoint.run_state import list_checkpoints

    parts: dict[str, list[tuple[list[int], torch.Tensor]]] = {}
    for path in sorted(list_checkpoints(folder / "checkpoints")[-1].glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            offsets = json.loads(file.metadata()["DCP_SHARDING_INFO"])
            for name in file.keys():  # noqa: SIM118
                parts.setdefault(name, []).append((offsets[name]["saved_offsets"], file.get_tensor(name)))
    return {name: _join(found) for name, found in parts.items()}


def _join(parts: list[tuple[list[int], torch.Tensor]]) -> torch.Tensor:
    ends = [[first + size for first, size in zip(at, part.shape, strict=True)] for at, part in parts]
    whole = torch.full([max(axis) for axis in zip(*ends, strict=True)], torch.nan)
    for at, part in parts:
        whole[tuple(slice(first, first + size) for first, size in zip(at, part.shape, strict=True))] = part
    assert not whole.isnan().any()
    return whole
