"""The fusion transformer: text, pictures and speech in one packed sequence.

Shape suffixes: B sequences, L positions, D model width, E embedding width, T items of one kind, V vocabulary.
The model knows nothing of ranks; how it is split lives in `mmscale.parallel`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmscale.batch import Batch
from mmscale.config import MediaConfig, ModelConfig
from mmscale.model.attention import AttentionPlan, make_plan
from mmscale.model.blocks import Block, RMSNorm
from mmscale.model.objectives import contrastive_loss, next_token_loss
from mmscale.model.rotary import rotary_angles
from mmscale.model.stems import AUDIO_STEMS, IMAGE_STEMS


class FusionTransformer(nn.Module):
    """Early-fusion transformer over packed segments of text, pictures and speech.

    Args:
        config: sizes and choices; ``config.vocab_size`` must be set.
        media: how pictures and sound become tokens.
    """

    def __init__(self, config: ModelConfig, media: MediaConfig) -> None:
        super().__init__()
        assert config.vocab_size > 0, "resolve model.vocab_size from the tokenizer first"
        self.config, self.media = config, media
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.image_stem = IMAGE_STEMS[config.image_stem](config, media)
        self.audio_stem = AUDIO_STEMS[config.audio_stem](config, media)
        self.blocks = nn.ModuleList(Block(config, number) for number in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.embed_head = nn.Linear(config.width, config.embed_dim, bias=False)
        # One element each, not scalars: a sharded parameter needs an axis.
        self.contrast_log_scale = nn.Parameter(torch.empty(1))
        self.contrast_bias = nn.Parameter(torch.empty(1))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The batch's share of the step's losses: float32 scalars ``next_token`` and ``contrastive``."""
        hidden = self.hidden(batch).flatten(0, 1)
        next_token = next_token_loss(
            hidden[batch.target_at_T], self.embedding.weight, batch.target_T, batch.target_weight_T
        )
        contrastive = contrastive_loss(
            self.embed_head(hidden[batch.embed_at_T]),
            self.contrast_log_scale,
            self.contrast_bias,
            sequence_T=batch.embed_at_T // batch.tokens_BL.shape[1],
            task_T=batch.embed_task_T,
            side_T=batch.embed_side_T,
            match_T=batch.embed_match_T,
            weight_T=batch.embed_weight_T,
        )
        return {"next_token": next_token, "contrastive": contrastive}

    def hidden(self, batch: Batch, plan: AttentionPlan | None = None) -> Tensor:
        """Output of the last norm, [B, L, D] in the compute type; ``plan`` replaces the batch's own attention."""
        x = self._inputs(batch)
        cos, sin = rotary_angles(batch.position_BL3, self.config.head_dim, self.config.rope_theta)
        plan = plan or make_plan(batch, self.config.attention)
        for block in self.blocks:
            x = block(x, cos, sin, plan, batch.dropout_key_B)
        return self.norm(x)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Next-token logits, float32 [T, V]."""
        return (hidden_TD @ self.embedding.weight.T).float()

    def embed(self, batch: Batch) -> Tensor:
        """Unit-length embeddings at the batch's <|embed|> tokens, float32 [T, E]."""
        hidden = self.hidden(batch).flatten(0, 1)[batch.embed_at_T]
        return F.normalize(self.embed_head(hidden).float(), dim=-1)

    def _inputs(self, batch: Batch) -> Tensor:
        """Text, picture and sound vectors in their places, [B, L, D].

        Both stems always run, on one blank item if the batch has none: a rank without pictures must still
        take part in the collectives of a sharded stem. Selecting no row of the output gives the stem's
        parameters a gradient of exactly zero.
        """
        x = self.embedding(batch.tokens_BL).flatten(0, 1)
        image, audio, frames = batch.image_N3HW, batch.audio_NFM, batch.audio_frames_N
        if image.shape[0] == 0:
            image = image.new_zeros(1, *image.shape[1:])
        if audio.shape[0] == 0:
            audio = audio.new_zeros(1, self.media.frames_per_token, self.media.mel_bins)
            frames = frames.new_full((1,), self.media.frames_per_token)
        sizes = batch.image_size_N2 if batch.images_padded else None
        pictures = self.image_stem(image, sizes).flatten(0, 1)[batch.image_take_T]
        sounds = self.audio_stem(audio, frames).flatten(0, 1)[batch.audio_take_T]
        x = x.index_copy(0, batch.image_at_T, pictures.to(x.dtype))
        x = x.index_copy(0, batch.audio_at_T, sounds.to(x.dtype))
        return x.view(*batch.tokens_BL.shape, -1)
