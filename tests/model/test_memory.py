"""What a training step keeps grows with its tokens, not with their square or with tokens times
vocabulary.
"""

import torch
from packings import MEDIA, model_config
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmscale import prf
from mmscale.data.loading.batch_builder import BatchBuilder
from mmscale.data.objectives.next_token import add_targets
from mmscale.model.fusion import FusionTransformer
from mmscale.model.initialise import initialise


class Peak(TorchDispatchMode):
    """Largest number of bytes that tensors made within it held at once, and the largest tensor."""

    def __init__(self):
        super().__init__()
        self.now = self.most = self.largest = 0
        self._seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        import weakref

        out = function(*args, **(kwargs or {}))
        for output in tree_leaves(out):
            if not isinstance(output, torch.Tensor):
                continue
            storage = output.untyped_storage()
            if storage._cdata in self._seen:
                continue
            size, mark = storage.nbytes(), storage._cdata
            self._seen.add(mark)
            self.now += size
            self.most, self.largest = max(self.most, self.now), max(self.largest, output.numel())
            weakref.finalize(storage, self._freed, mark, size)
        return out

    def _freed(self, mark, size):
        self._seen.discard(mark)
        self.now -= size


def batch_of(length):
    draws, builder = prf.Draws(1), BatchBuilder(1, length, MEDIA)
    builder.open_sequence()
    while builder.room >= 128:
        builder.open_segment()
        builder.add_image(builder.new_image(torch.zeros(3, 16, 24, dtype=torch.uint8).numpy()))
        ids = (5 + draws.uniforms(122) * 50).astype(int)
        add_targets(builder, builder.add_text(ids), ids, 0.01)
    return builder.finish()


def test_peak_grows_no_faster_than_the_tokens():
    config = model_config(vocab_size=20_000)
    model = FusionTransformer(config, MEDIA)
    initialise(model, config, 0)
    peaks = []
    for length in (1024, 2048, 4096):
        batch = batch_of(length)
        with Peak() as peak:
            sum(model(batch).values()).backward()
        for parameter in model.parameters():
            parameter.grad = None
        peaks.append(peak.most)
        assert peak.largest <= max(1 << 25, 20_000 * 32)
    assert len(batch.objectives["next_token"]["token_T"]) * 20_000 > 2 * peak.largest, (
        "logits of all targets would be far larger"
    )
    assert peaks[1] <= 2.05 * peaks[0] and peaks[2] <= 2.05 * peaks[1], peaks
    assert peaks[2] > 1.2 * peaks[1], "the measure sees what a step keeps"
