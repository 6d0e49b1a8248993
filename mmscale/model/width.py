"""Width-aware parametrisation: a learning rate found on a narrow model holds on a wide one.

muP for Adam (Yang et al., "Tensor Programs V", 2022, table 3), with ``model.base_width`` as the
width at which it is the standard parametrisation. A weight's rule follows from which of its sides
grow with the model's width:

======  =======================================  ==================  ===========================
rule    parameters                               learning rate       initial deviation
======  =======================================  ==================  ===========================
hidden  matrices of blocks, of the GRU stem      x base / width [1]  as always: 1 / sqrt(fan-in)
output  embed_head, class heads                  x base / width      x sqrt(base / width)
input   embedding, convolutions and projections  x 1                 as always
        of the stems, norms, biases, scalars
======  =======================================  ==================  ===========================

[1] By AdamW. Every optimiser has its own factor: `mmscale.optim.optimizer_kind`.

The embedding is tied to the output, so its logits are multiplied by base / width instead. Attention
needs no 1 / d scale: heads have one width at every size, and queries and keys are normalised.
Decoupled weight decay is multiplied by width / base where the learning rate is divided by it, so
that both shrink a weight alike at every width.

The rules of blocks, embedding and norm stand here, those of a stem in its class
(`mmscale.model.stem.Stem`), those of an objective's heads in its loss
(`mmscale.model.objective.Loss`).
"""

from __future__ import annotations

from mmscale.config import ModelConfig
from mmscale.model.objective import losses
from mmscale.model.stem import stem_class

_KINDS = ("hidden", "output", "input")
_RULES = {
    "embedding.": "input",
    "blocks.": "hidden",
    "norm.": "input",
}


def width_ratio(config: ModelConfig) -> float:
    """base / width; 1 with the standard parametrisation (``base_width`` 0)."""
    return config.base_width / config.width if config.base_width else 1.0


def rule_of(name: str, dimensions: int, config: ModelConfig) -> str:
    """``hidden``, ``output`` or ``input`` for a parameter of `FusionTransformer` by name.

    A name that nobody has given a rule is an AssertionError: taken for an input, a matrix would be
    trained at the wrong rate at every width but one, and no message would say so.
    """
    rule = _rule_by_name(name, config)
    return "input" if dimensions < 2 else rule


def _rule_by_name(name: str, config: ModelConfig) -> str:
    """Of what the parameter would be as a matrix."""
    part, _, own = name.partition(".")
    stem = stem_class(part, config)
    if stem is not None:
        rules, where = stem.width_rules, f"{stem.__name__}.width_rules"
    else:
        heads = {
            prefix: rule for loss in losses().values() for prefix, rule in loss.width_rules.items()
        }
        rules, own = {**_RULES, **heads}, name
        where = f"{__name__}._RULES, or to width_rules of the loss it belongs to"
    prefix = max((prefix for prefix in rules if own.startswith(prefix)), key=len, default=None)
    assert prefix is not None, (
        f"parameter {name}: has no width rule; add its name's first letters to {where}"
    )
    assert rules[prefix] in _KINDS, f"{where}: {rules[prefix]!r} is none of {', '.join(_KINDS)}"
    return rules[prefix]


def initial_factor(name: str, dimensions: int, config: ModelConfig) -> float:
    """Factor of a parameter's initial standard deviation."""
    return width_ratio(config) ** 0.5 if rule_of(name, dimensions, config) == "output" else 1.0
