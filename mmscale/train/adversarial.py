"""Adversarial training: every micro-batch is replaced by the worst one nearby, found with the
weights of the moment.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmscale import prf
from mmscale.batch import Batch
from mmscale.config import Config
from mmscale.model.attack import Budget, ItemKeys, attack, first_places
from mmscale.parallel.strategy import Strategy


class Adversary:
    """Changes batches as ``config.train.adversarial`` says; does nothing if that is off.

    Which items are changed, and their random starts, follow from (seed, step, sequence, place in
    it). The loss that is driven up is that of the micro-batch, so a step is the same on any number
    of ranks; the contrastive part is left out where its groups span several sequences, which no
    single micro-batch holds.
    """

    def __init__(self, config: Config, strategy: Strategy) -> None:
        wanted = config.train.adversarial
        self._on, self._share = wanted.on, wanted.share
        self._budget = Budget(wanted.image, wanted.audio, wanted.steps)
        self._seed, self._media = config.seed, config.media
        self._strategy, self._contrast = strategy, config.data.contrast_sequences == 1

    def harden(self, batch: Batch) -> Batch:
        """The batch to train on. Called on every rank of a step, for as many batches."""
        return (
            attack(batch, self._media, self._budget, self._keys(batch), self._gradients)
            if self._on
            else batch
        )

    def _keys(self, batch: Batch) -> ItemKeys:
        length = batch.tokens_BL.shape[1]
        keys, on = [], []
        for kind, first_N in zip(("image", "audio"), first_places(batch, self._media), strict=True):
            item_keys = [
                prf.derive_key(
                    self._seed,
                    "adversarial",
                    kind,
                    batch.step,
                    batch.sequences[at // length],
                    at % length,
                )
                for at in first_N.tolist()
            ]
            keys.append(item_keys)
            on.append(
                [
                    prf.Draws(prf.derive_key(key, "chosen")).uniform() < self._share
                    for key in item_keys
                ]
            )
        return ItemKeys(keys[0], keys[1], on[0], on[1])

    def _gradients(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return input_gradients(self._strategy, batch, self._contrast)


def input_gradients(strategy: Strategy, batch: Batch, contrast: bool) -> tuple[Tensor, Tensor]:
    """Those of the batch's loss with regard to its pictures and clips; ``contrast``: the
    contrastive part counts.
    """
    losses = strategy.input_losses(batch)
    total = torch.stack(
        [loss for name, loss in losses.items() if contrast or name != "contrastive"]
    ).sum()
    image, audio = torch.autograd.grad(total, (batch.image_N3HW, batch.audio_NFM))
    return image, audio
