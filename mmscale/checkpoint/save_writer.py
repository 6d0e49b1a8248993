"""What distributed checkpointing calls to store the planned tensors: a folder of shards, then one
call to commit it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from mmscale.checkpoint.run_state import Files
from mmscale.checkpoint.shard_file import write_shard


class CachedSavePlanner(DefaultSavePlanner):
    """PyTorch's plan of which rank writes what, kept for the next save of tensors like these: half
    of its time.

    Args:
        name: of the process group, so to speak. PyTorch keeps plans by class for as long as a
            process lives; but a plan that this rank leaves unsaid must be one that the other ranks
            of this very group have heard.
    """

    def __init__(self, name: str) -> None:
        super().__init__(enable_plan_caching=True)
        assert hasattr(self, "_cached_plans_key")
        self._cached_plans_key = name


class CheckpointWriter(HuggingFaceStorageWriter):
    """Writes one safetensors file per rank, as PyTorch's own writer would, but with one pass and no
    second copy.

    Args:
        folder: where they go.
        ranks: how many write.
        commit: called on the first rank with every rank's files when all of them lie on the disk.
    """

    def __init__(self, folder: Path, ranks: int, commit: Callable[[Files], None]) -> None:
        self._folder, self._ranks, self._commit = folder, ranks, commit
        self.written = ""  # name of this rank's file
        super().__init__(str(folder), save_distributed=True)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Called on every rank, beside training."""
        results: list[WriteResult] = []
        done: Future[list[WriteResult]] = Future()
        if plan.items:
            assert plan.storage_data is not None
            number = plan.storage_data["shard_index"]
            self.written = f"shard-{number:05d}-model-00001-of-00001.safetensors"
            tensors: dict[str, Tensor] = {}
            offsets = {}
            for item in plan.items:
                assert item.tensor_data is not None, "a checkpoint holds tensors only"
                name = item.index.fqn
                assert name not in tensors, f"{name} has two shards on one rank"
                data = planner.resolve_data(item)
                tensors[name] = data.detach().cpu()  # type: ignore[union-attr]
                offsets[name] = {"saved_offsets": list(item.tensor_data.chunk.offsets)}
            metadata = {
                "DCP_SHARDING_INFO": json.dumps(offsets),
                "DCP_VERSION": "1.0",
                "format": "pt",
            }
            fact = write_shard(self._folder / self.written, tensors, metadata)
            for item in plan.items:
                size = tensors[item.index.fqn].nbytes
                results.append(WriteResult(item.index, size, (self.written, fact)))
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Called on the first rank after every rank's `write_data` returned."""
        if len(results) != self._ranks:
            # On a rank that has left the process group meanwhile, because its training ended with
            # an error, PyTorch takes what that rank has for the whole, and saves it alone.
            raise RuntimeError(f"{len(results)} of {self._ranks} ranks wrote their share")
        self._commit(dict(result.storage_data for of_rank in results for result in of_rank))
