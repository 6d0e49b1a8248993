"""The fusion transformer: text, pictures and speech in one packed sequence.

Shape suffixes: B sequences, L positions, D model width, E embedding width, T items of one kind, V
vocabulary. The model knows nothing of ranks; how it is split lives in `mmscale.parallel`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mmscale.batch import Batch
from mmscale.config import MediaConfig, ModelConfig
from mmscale.model.attention import AttentionPlan
from mmscale.model.blocks import Block, BlockInputs, RMSNorm, block_inputs
from mmscale.model.cache import Cache
from mmscale.model.grad_cache import ContrastTerms
from mmscale.model.objective import LossInputs, losses
from mmscale.model.operators import Operators
from mmscale.model.positions import Positions
from mmscale.model.rotary import rotary_angles
from mmscale.model.width import width_ratio
from mmscale.registry import AUDIO_STEMS, IMAGE_STEMS


def _run(block: nn.Module, *arguments: object) -> Tensor:
    out: Tensor = block(*arguments)
    return out


class FusionTransformer(nn.Module):
    """Early-fusion transformer over packed segments of text, pictures and speech.

    Args:
        config: sizes and choices; ``config.vocab_size`` must be set.
        media: how pictures and sound become tokens.
    """

    operators = Operators()
    # Weights of the contrastive objective, which other rooms name.
    embed_head: nn.Linear
    contrast_log_scale: nn.Parameter
    contrast_bias: nn.Parameter

    def __init__(self, config: ModelConfig, media: MediaConfig) -> None:
        super().__init__()
        assert config.vocab_size > 0, "resolve model.vocab_size from the tokenizer first"
        self.config, self.media = config, media
        # `mmscale.parallel` may compute activations again, and some of the positions elsewhere.
        self.run_block: Callable[..., Tensor] = _run
        self.positions = Positions()
        self._tied_factor = width_ratio(config)  # of logits made by the embedding
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.image_stem = IMAGE_STEMS[config.image_stem](config, media)
        self.audio_stem = AUDIO_STEMS[config.audio_stem](config, media)
        self.blocks = nn.ModuleList(Block(config, number) for number in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.losses = losses()
        for loss in self.losses.values():
            for name, weights in loss.weights(config).items():
                setattr(self, name, weights)

    def forward(
        self, batch: Batch, contrast: ContrastTerms | None = None, embeddings_only: bool = False
    ) -> dict[str, Tensor]:
        """The batch's share of the step's losses, float32 scalars by objective.

        ``contrast`` replaces the contrastive loss among the batch's own embeddings. With
        ``embeddings_only``, instead: ``unit`` float32 [T, E], the embeddings, and ``log_scale`` and
        ``bias``, [1].
        """
        inputs = self._loss_inputs(self.positions.whole(self.hidden(batch)), contrast)
        if embeddings_only:
            unit = self.losses["contrastive"].outputs(self, inputs, batch.objectives["contrastive"])
            scale, bias = self.contrast_log_scale, self.contrast_bias
            return {"unit": unit, "log_scale": scale.clone(), "bias": bias.clone()}
        blocks = batch.objectives
        heads = {name: loss.head(self, inputs, blocks[name]) for name, loss in self.losses.items()}
        return {
            name: loss.loss(self, inputs, blocks[name], heads[name])
            for name, loss in self.losses.items()
        }

    def outputs(self, objective: str, batch: Batch) -> Any:
        """What evaluation reads of one objective, at the positions in its block; see its `Loss`."""
        inputs = self._loss_inputs(self.hidden(batch), None)
        return self.losses[objective].outputs(self, inputs, batch.objectives[objective])

    def hidden(self, batch: Batch, plan: AttentionPlan | None = None) -> Tensor:
        """Output of the last norm at this process's positions, by default all: [B, L, D] in the
        compute type.

        ``plan`` replaces the batch's own attention.
        """
        x_BLD = self.positions.mine(self._inputs(batch))
        return self._through_blocks(x_BLD, self._places(batch, plan))

    def start(self, batch: Batch, extra: int) -> tuple[Tensor, Cache]:
        """Read queries, one in each sequence of ``batch``, for up to ``extra`` further tokens each.

        Returns the output at the last position of each, [R, D], and what `step` needs.
        """
        length_R = (batch.segment_BL > 0).sum(1)
        row = torch.arange(len(length_R), device=length_R.device)
        cache = Cache(
            length_R,
            batch.position_BL3[row, length_R - 1, 0] + 1,
            layers=self.config.layers,
            extra=extra,
            recurrent=self.config.fusion == "rnn",
        )
        x = self._through_blocks(self._inputs(batch), self._places(batch, None), cache)
        return x[row, length_R - 1], cache

    def step(self, token_R: Tensor, cache: Cache) -> Tensor:
        """Read one more token of each row, int64 [R]; returns the output there, [R, D]."""
        position = cache.clock_R[:, None, None].expand(-1, 1, 3)
        cos, sin = rotary_angles(position, self.config.head_dim, self.config.rope_theta)
        rows, none = torch.arange(len(token_R), device=token_R.device), token_R[:0]
        places = BlockInputs(
            cos=cos,
            sin=sin,
            plan=AttentionPlan("cached"),
            modality_BL=torch.zeros_like(token_R)[:, None],
            routes=(rows, none, none),
            dropout_key_B=token_R,
            positions=Positions(),
        )
        x = self._through_blocks(self.embedding(token_R)[:, None], places, cache)
        cache.clock_R = cache.clock_R + 1
        return x[:, 0]

    def _places(self, batch: Batch, plan: AttentionPlan | None) -> BlockInputs:
        cos, sin = rotary_angles(batch.position_BL3, self.config.head_dim, self.config.rope_theta)
        if plan is None and self.config.fusion == "rnn":
            order = self.operators.time_major(batch.segment_BL)
            plan = AttentionPlan("recurrent", time_major=order)
        return block_inputs(
            batch,
            cos,
            sin,
            plan or self.operators.make_plan(batch, self.config.attention, self.positions),
            self.positions,
        )

    def _through_blocks(
        self, x_BLD: Tensor, places: BlockInputs, cache: Cache | None = None
    ) -> Tensor:
        for number, block in enumerate(self.blocks):
            x_BLD = self.run_block(block, x_BLD, places, cache.blocks[number] if cache else None)
        return self.norm(x_BLD)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Next-token logits, float32 [T, V]."""
        return (hidden_TD * self._tied_factor @ self.embedding.weight.T).float()

    def _loss_inputs(self, hidden_BLD: Tensor, contrast: ContrastTerms | None) -> LossInputs:
        hidden_TD = hidden_BLD.flatten(0, 1)
        return LossInputs(
            hidden_TD=hidden_TD,
            words_TD=hidden_TD * self._tied_factor,
            table_VD=self.embedding.weight,
            smoothing=self.config.label_smoothing,
            positions=self.positions,
            contrast=contrast,
            many_logits=self.operators.many_logits,
        )

    def _inputs(self, batch: Batch) -> Tensor:
        """Text, picture and sound vectors in their places, [B, L, D].

        Both stems always run, on one blank item if the batch has none: a rank without pictures must
        still take part in the collectives of a sharded stem. Selecting no row of the output gives
        the stem's parameters a gradient of exactly zero.
        """
        x = self.embedding(batch.tokens_BL).flatten(0, 1)
        image, audio = batch.image_N3HW, batch.audio_NFM
        frames, chunks = batch.audio_frames_N, batch.audio_chunks
        if image.shape[0] == 0:
            image = image.new_zeros(1, *image.shape[1:])
        if audio.shape[0] == 0:
            audio = audio.new_zeros(1, self.media.frames_per_token, self.media.mel_bins)
            frames = frames.new_full((1,), self.media.frames_per_token)
            chunks = [(0, 1, self.media.frames_per_token)]
        sizes = batch.image_size_N2 if batch.images_padded else None
        pictures = self.image_stem(image, sizes).flatten(0, 1)[batch.image_take_T]
        sounds = self.audio_stem(audio, frames, chunks)[batch.audio_take_T]
        x = x.index_copy(0, batch.image_at_T, pictures.to(x.dtype))
        x = x.index_copy(0, batch.audio_at_T, sounds.to(x.dtype))
        return x.view(*batch.tokens_BL.shape, -1)
