"""A third optimiser, registered as a plug-in would: trained, resumed, exported, and nowhere taken
for another.
"""

import pytest
import torch
from checkpoints import weights
from small_run import small_config, write_shards

from mmscale.config import OptimizerConfig
from mmscale.config_file import config_from_tree, to_tree
from mmscale.errors import UserError
from mmscale.optim.optimizer import TrainOptimizer
from mmscale.optim.optimizer_kind import OptimizerKind
from mmscale.registry import OPTIMIZERS
from mmscale.release.export import export
from mmscale.train.loop import train


class Signum(torch.optim.Optimizer):
    """Moves every element by the sign of its momentum."""

    def __init__(self, groups, reads_found_inf=True):
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self._step_supports_amp_scaling = reads_found_inf

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in (p for p in group["params"] if p.grad is not None):
                momentum = self.state[parameter]["sign_momentum"]
                taken = 1.0 if self.found_inf is None else 1.0 - self.found_inf
                momentum.lerp_(parameter.grad, 0.5 * taken)
                parameter.sub_(group["lr"] * taken * momentum.sign())


class SignumKind(OptimizerKind):
    card = "Signum of the blocks with AdamW"
    moments = ("sign_momentum",)
    elementwise = False
    reads_found_inf = True

    def takes(self, name, axes):
        return name.startswith("blocks.")

    def lr_factor(self, rule, ratio):
        return 3.0

    def build(self, groups, config, compute):
        return Signum(groups, self.reads_found_inf)


@pytest.fixture
def signum():
    kind = SignumKind()
    OPTIMIZERS.register("signum", kind)
    yield kind
    del OPTIMIZERS._kinds["signum"]


def short_run(folder, shards, strategy="single"):
    config = small_config(folder, shards)
    config.train.steps, config.data.workers, config.parallel.threads = 2, 0, 1
    config.train.precision, config.parallel.strategy = "fp32", strategy
    config.train.optimizer.name, config.data.max_bad_fraction = "signum", 1.0
    config.run.progress = config.run.tensorboard = False
    config.model.vocab_size, config.data.tokenizer.vocab_size = 0, 300
    return config


def test_it_trains_resumes_and_is_exported_with_its_own_line(tmp_path, signum):
    write_shards(tmp_path / "shards", count=4)
    whole, parts = (short_run(tmp_path / name, tmp_path / "shards") for name in ("whole", "parts"))
    config_from_tree(to_tree(whole), "test")  # its name is a choice
    train(whole)
    assert train(parts, until=1).steps == 1
    assert train(parts).resumed_from == 1
    expected, resumed = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in expected.items())
    own = {name.partition(".")[2] for name in expected if name.startswith("sign_momentum.")}
    assert own and all(name.startswith("blocks.") for name in own)
    assert not any(f"exp_avg.{name}" in expected for name in own), "AdamW updates the rest alone"
    assert expected["sign_momentum.blocks.0.attention.q_proj.weight"].any()

    export(tmp_path / "whole", tmp_path / "release")
    card = (tmp_path / "release" / "README.md").read_text()
    assert f"| optimizer | {signum.card}, peak learning rate" in card


def test_a_strategy_of_flat_pieces_refuses_it_by_what_it_is(tmp_path, signum):
    write_shards(tmp_path / "shards", count=4)
    with pytest.raises(UserError, match="zero1 needs adamw"):
        train(short_run(tmp_path / "run", tmp_path / "shards", "zero1"))


def test_one_that_would_take_steps_that_are_to_be_skipped_is_refused(signum):
    model = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([torch.nn.Linear(2, 2)])})
    sizes = short_run("unused", "unused").model
    TrainOptimizer(model, OptimizerConfig(name="signum"), sizes)
    signum.reads_found_inf = False
    with pytest.raises(AssertionError, match="signum: its step reads no found_inf"):
        TrainOptimizer(model, OptimizerConfig(name="signum"), sizes)


def test_an_unknown_one_is_never_taken_for_another(tmp_path):
    config = short_run(tmp_path / "run", tmp_path / "shards")
    with pytest.raises(UserError, match=r"train\.optimizer\.name: 'signum' is not one of 'adamw'"):
        config_from_tree(to_tree(config), "test")
    with pytest.raises(AssertionError, match="no optimizer is named 'signum'"):
        TrainOptimizer(torch.nn.Linear(2, 2), config.train.optimizer, config.model)
