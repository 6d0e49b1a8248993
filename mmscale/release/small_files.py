"""The small files of a release, under the names that the Hugging Face libraries look for.

config.json               what `mmscale.load` needs: format, resolved config, step, fingerprint of
                          the data plan, type of the weights; for `transformers`, model_type and
                          the usual names of the sizes
preprocessor_config.json  how pictures and sound become tokens
generation_config.json    how answers end
tokenizer.json            the run's tokenizer; tokenizer_config.json names its class
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmscale.config import Config
from mmscale.config_file import to_tree
from mmscale.data.special_tokens import END, PAD, SPECIAL_TOKENS
from mmscale.data.tokenizer import Tokenizer
from mmscale.json_file import write_object
from mmscale.release.layout import (
    CONFIG,
    FORMAT,
    GENERATION,
    PREPROCESSOR,
    TOKENIZER,
    TOKENIZER_CONFIG,
    VERSION,
)

MODEL_TYPE, MODEL_CLASS, PROCESSOR_CLASS = "mmscale", "MmscaleModel", "MmscaleProcessor"
# For who looks into config.json after `transformers` did not recognize its model_type.
COMMENT = "`import mmscale` registers this model_type with transformers (AutoConfig, AutoModel)"


def write_small_files(
    folder: Path, config: Config, tokenizer: Tokenizer, facts: dict[str, Any], dtype: str
) -> None:
    """Write all of them. ``facts`` are step, fingerprint and number of parameters; ``dtype`` is a
    name of torch's.
    """
    model = config.model
    tree = {
        "format": FORMAT,
        "version": VERSION,
        "comment": COMMENT,
        "model_type": MODEL_TYPE,
        "architectures": [MODEL_CLASS],
        # Here alone: transformers then looks at the model's type before it looks for the class of
        # this name.
        "processor_class": PROCESSOR_CLASS,
        "dtype": dtype,
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "intermediate_size": model.hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "tie_word_embeddings": True,
        "eos_token_id": END,
        "pad_token_id": PAD,
        **facts,
        "config": to_tree(config),
    }
    write_object(folder / CONFIG, tree)
    write_object(folder / PREPROCESSOR, to_tree(config.media))
    write_object(
        folder / GENERATION,
        {"eos_token_id": END, "pad_token_id": PAD, "do_sample": False, "max_new_tokens": 64},
    )
    tokenizer.save(folder / TOKENIZER)
    write_tokenizer_config(folder)


def write_tokenizer_config(folder: Path) -> None:
    """What `transformers.AutoTokenizer` needs beside tokenizer.json."""
    tree = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL_TOKENS[END],
        "pad_token": SPECIAL_TOKENS[PAD],
    }
    write_object(folder / TOKENIZER_CONFIG, tree)
