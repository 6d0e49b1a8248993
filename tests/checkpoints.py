"""What the checkpoints of a run hold, for tests."""

import hashlib
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
                parts.setdefault(name, []).append(
                    (offsets[name]["saved_offsets"], file.get_tensor(name))
                )
    return {name: _join(pieces) for name, pieces in parts.items()}


def relist(checkpoint: Path) -> None:
    """Make state.json agree with the files, as if they had been saved so."""
    state = json.loads((checkpoint / "state.json").read_text())
    files = {path.name: path.read_bytes() for path in checkpoint.glob("*.safetensors")}
    state["files"] = {
        name: {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        for name, raw in files.items()
    }
    (checkpoint / "state.json").write_text(json.dumps(state))


def _join(parts: list[tuple[list[int], torch.Tensor]]) -> torch.Tensor:
    ends = [
        [first + size for first, size in zip(at, part.shape, strict=True)] for at, part in parts
    ]
    whole = torch.full([max(axis) for axis in zip(*ends, strict=True)], torch.nan)
    for at, part in parts:
        whole[
            tuple(slice(first, first + size) for first, size in zip(at, part.shape, strict=True))
        ] = part
    assert not whole.isnan().any()
    return whole
