"""Print one JSON line per sequence of a range of steps as a given rank's loader makes it: its keys
and a checksum.

Run as a module in a process of its own: python -m checksums CONFIG A:B RANK WORLD WORKERS
    MICRO_BATCH [key=value …]
"""

import hashlib
import json
import sys

import torch
from plans import make_plan

from mmscale.batch import Batch
from mmscale.config_file import load_config
from mmscale.data.loading.assembler import Assembler
from mmscale.data.loading.loader import MicroBatches, iterate_steps
from mmscale.train.prepare import prepare_data, run_tokenizer


def sequence_checksum(batch: Batch, row: int) -> str:
    """SHA-256 of everything the batch holds about one sequence, independent of its neighbours."""
    length = batch.tokens_BL.shape[1]
    digest = hashlib.sha256()

    def add(tensor: torch.Tensor) -> None:
        digest.update(tensor.contiguous().numpy().tobytes())

    for tensor in (
        batch.tokens_BL,
        batch.kind_BL,
        batch.segment_BL,
        batch.span_BL,
        batch.position_BL3,
    ):
        add(tensor[row])
    add(batch.dropout_key_B[row])
    blocks = batch.objectives
    for objective in ("next_token", "contrastive", "classify"):
        at, *values = blocks[objective].values()
        here = at // length == row
        add(at[here] % length)
        for value in values:
            add(value[here])
    ctc = blocks["ctc"]
    for clip, tokens in enumerate(ctc["tokens_C"].tolist()):
        at = ctc["at_CP"][clip, :tokens]
        if at[0] // length == row:
            add(at % length)
            add(ctc["target_CU"][clip, : ctc["length_C"][clip]])
            add(ctc["weight_C"][clip])
    here = batch.image_at_T // length == row
    images = batch.image_take_T[here] // max(
        1, batch.image_take_T.numel() and tokens_per_image(batch)
    )
    add(batch.image_N3HW[images.unique_consecutive()])
    here = batch.audio_at_T // length == row
    if here.any():
        for clip in clips_of(batch)[batch.audio_take_T[here]].unique_consecutive().tolist():
            add(batch.audio_NFM[clip, : int(batch.audio_frames_N[clip])])
    return digest.hexdigest()


def clips_of(batch: Batch) -> torch.Tensor:
    """int64, the clip that each of the audio stem's outputs belongs to."""
    chunks = batch.audio_chunks
    return torch.cat(
        [
            torch.arange(a, b).repeat_interleave(frames // FRAMES_PER_TOKEN)
            for a, b, frames in chunks
        ]
    )


def tokens_per_image(batch: Batch) -> int:
    return (batch.image_N3HW.shape[2] // PATCH) * (batch.image_N3HW.shape[3] // PATCH)


def main() -> None:
    global PATCH, FRAMES_PER_TOKEN
    path, steps, rank, world, workers, micro_batch, *overrides = sys.argv[1:]
    first, last = map(int, steps.split(":"))
    config = load_config(path, overrides)
    PATCH, FRAMES_PER_TOKEN = config.media.image_patch, config.media.frames_per_token
    prepare_data(config)
    tokenizer = run_tokenizer(config)
    config.model.classes = {"json_digit": [str(digit) for digit in range(10)]}
    plan = make_plan(config, tokenizer)
    data = MicroBatches(
        plan,
        Assembler(config, plan, tokenizer),
        steps=last,
        micro_batch=int(micro_batch),
        rank=int(rank),
        world=int(world),
    )
    for step in iterate_steps(data, first, workers=int(workers), prefetch=2, pin_memory=False):
        for batch in step.batches:
            for row, number in enumerate(batch.sequences):
                line = {"step": batch.step, "sequence": number, "keys": batch.keys[row]}
                print(
                    json.dumps(
                        {**line, "sha256": sequence_checksum(batch, row), "faults": batch.faults}
                    )
                )


if __name__ == "__main__":
    main()
