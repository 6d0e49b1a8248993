"""Plans as training makes them, with whatever history a test gives."""

from typing import Any

from mmscale.config import Config
from mmscale.data.planning.step_plan import Plan
from mmscale.data.tokenizer import Tokenizer
from mmscale.model.flops import Flops


def make_plan(config: Config, tokenizer: Tokenizer, *rest: Any) -> Plan:
    """A `Plan` whose costs are those of the config's model."""
    cost = Flops(config.model, config.media, len(tokenizer)).sequence
    return Plan(config, tokenizer, *rest, cost=cost)
