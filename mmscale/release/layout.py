"""What a release is made of: the names of its files, its format, the types of its weights.

Those who write a release and those who open one know each other by this alone.
"""

from __future__ import annotations

import re

import torch

FORMAT, VERSION = "mmscale-release", 1
CONFIG, TOKENIZER, CARD = "config.json", "tokenizer.json", "README.md"
PREPROCESSOR, GENERATION, TOKENIZER_CONFIG = (
    "preprocessor_config.json",
    "generation_config.json",
    "tokenizer_config.json",
)
ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
WEIGHT_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
