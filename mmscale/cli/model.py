"""`mmscale model`."""

from __future__ import annotations

import argparse
from typing import Any

from mmscale.cli.verb import add_config, verb
from mmscale.errors import UserError

MODEL_EPILOG = """\
The config is that of a run, or of a model alone. Nothing is allocated: 10 B parameters are counted
in seconds.

examples:
  mmscale model configs/model/10b.yaml
  mmscale model configs/train/digits.yaml model.vocab_size=512 model.fusion=rnn
"""


def add(verbs: Any) -> None:
    """Declare the command `model` and its options."""
    model = verb(
        verbs, "model", _model, "count the parameters of a config's model, by part", MODEL_EPILOG
    )
    add_config(model)


def _model(arguments: argparse.Namespace) -> dict[str, Any]:
    from mmscale.config_file import load_model_config
    from mmscale.model.count import count_parameters

    model, media = load_model_config(arguments.config, arguments.overrides, arguments.plugins)
    if not model.vocab_size:
        raise UserError(
            f"{arguments.config}: model.vocab_size is 0, which follows the tokenizer; give it, "
            "such as model.vocab_size=32768"
        )
    counts = count_parameters(model, media)
    if not arguments.json:
        for part, count in counts.items():
            print(f"{part:<14}{count:>18,}  {count / counts['total']:7.2%}")
    return counts
