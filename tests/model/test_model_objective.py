"""An objective is known in both halves or not at all; an unknown one is never taken for another."""

import pytest
from packings import MEDIA, model_config
from torch import nn

from mmscale.config import OptimizerConfig
from mmscale.config_file import config_from_tree
from mmscale.errors import UserError
from mmscale.model.flops import Flops
from mmscale.model.fusion import FusionTransformer
from mmscale.model.initialise import initialise
from mmscale.model.objective import losses
from mmscale.model.objectives.ctc import CtcLoss
from mmscale.optim.optimizer import TrainOptimizer
from mmscale.registry import LOSSES, OBJECTIVES


class Headed(CtcLoss):
    """A loss with a matrix of its own, and no rule for it."""

    def weights(self, config):
        return {"number_head": nn.Linear(config.width, 1)}


def test_the_order_of_ours_stays():
    """Sums of floating-point numbers depend on it: a new objective comes behind these."""
    assert list(losses())[:4] == ["next_token", "contrastive", "ctc", "classify"]


def test_an_unknown_objective_is_an_error_everywhere():
    """It was once taken for classification."""
    task = {"objective": "regress", "input": ["image"], "target": "json.digit"}
    sets = {"digits": {"shards": ["here"], "tasks": [task]}}
    with pytest.raises(UserError, match=r"objective: 'regress' is not one of 'classify', 'contras"):
        config_from_tree({"data": {"sets": sets}}, "here")
    for registry in (OBJECTIVES, LOSSES):
        with pytest.raises(AssertionError, match="is named 'regress'"):
            registry["regress"]
    with pytest.raises(AssertionError, match="totals of unknown cost: regress"):
        Flops(model_config(), MEDIA, 9).sequence({"regress": 1})


@pytest.mark.parametrize(
    ("there", "lacks"),
    [(OBJECTIVES, "mmscale.model.objectives"), (LOSSES, "mmscale.data.objectives")],
    ids=["no loss", "no data"],
)
def test_half_an_objective_is_an_error(monkeypatch, there, lacks):
    monkeypatch.setitem(there._kinds, "regress", there["ctc"])
    line = f"'regress' is half there: {lacks} has no module regress; add it"
    with pytest.raises(AssertionError, match=line):
        FusionTransformer(model_config(), MEDIA)
    with pytest.raises(AssertionError, match=line):
        Flops(model_config(), MEDIA, 9)


def test_a_new_head_is_under_no_rule_by_silence(monkeypatch):
    """It once fell under the rule for inputs."""
    monkeypatch.setitem(LOSSES._kinds, "regress", Headed())
    monkeypatch.setitem(OBJECTIVES._kinds, "regress", OBJECTIVES["ctc"])
    model = FusionTransformer(model_config(base_width=8), MEDIA)
    message = r"number_head\.weight: has no width rule; .* width_rules of the loss it belongs to"
    with pytest.raises(AssertionError, match=message):
        initialise(model, model.config, 0)
    with pytest.raises(AssertionError, match=message):
        TrainOptimizer(model, OptimizerConfig(), model.config)
    monkeypatch.setattr(Headed, "width_rules", {"number_head.": "output"})
    initialise(model, model.config, 0)
    TrainOptimizer(model, OptimizerConfig(), model.config)
