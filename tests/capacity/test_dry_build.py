"""What a dry run builds is what training builds: a strategy is planned or refused, never missed."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT
from patience import patience
from test_dry_plan import GPU, planner, small_config
from test_search import look
from test_search import made_up as made_up
from toy_strategies import Toy

from mmscale.capacity.dry_batch import dry_batch
from mmscale.capacity.dry_run import DryStep, dry_run
from mmscale.capacity.estimate import Assumptions, estimate
from mmscale.config_file import dump_config
from mmscale.errors import UserError
from mmscale.parallel.strategy import Strategy
from mmscale.registry import STRATEGIES


@pytest.fixture
def register():
    """Registers strategies for one test."""
    names = []

    def add(name, kind):
        STRATEGIES.register(name, kind)
        names.append(name)

    yield add
    for name in names:
        del STRATEGIES._kinds[name]


def run_toy(name):
    order = {
        "world": 2, "sequences": 1, "passes": 1, "fused": True,
        "config": dump_config(small_config(strategy=name)),
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, str(ROOT / "tests" / "capacity" / "toy_strategies.py")],
        cwd=ROOT,
        input=json.dumps(order),
        capture_output=True,
        text=True,
        timeout=patience(30),
        check=False,
    )


def test_nothing_in_the_package_is_replaced_by_mocks():
    files = sorted((ROOT / "mmscale").rglob("*.py"))
    assert len(files) > 200
    assert not [path for path in files if "unittest" in path.read_text(encoding="utf-8")]


def test_a_strategy_of_tomorrow_is_planned():
    """It shards nothing, so it holds what one process holds."""
    done = run_toy("toy")
    assert done.returncode == 0, done.stderr
    assert DryStep(**json.loads(done.stdout)) == dry_run(small_config(strategy="single"), 1, 1)


def test_one_that_forgets_the_builder_is_refused():
    done = run_toy("stray")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == (
        "parallel.strategy=stray: does not take its model from Builder.build, so it cannot be "
        "planned; use another strategy"
    )


def test_one_that_the_dry_run_does_not_know_is_refused(register):
    """Its process imports the package alone, and never takes an unknown name for another."""
    register("toy", Toy)
    planned = planner(small_config(strategy="toy"), world=2)
    with pytest.raises(UserError, match=r"parallel\.strategy.*toy"):
        planned.evaluate(planned.own_way())


def test_one_that_does_not_say_what_it_sends_is_refused(register):
    class Silent(Strategy):
        name = "silent"

    register("silent", Silent)
    config = small_config(strategy="silent")
    step = DryStep({"total": 1}, 1.0, {})
    with pytest.raises(UserError, match="silent: does not say how long its communication takes"):
        estimate(
            config, step, dry_batch(config, 1), world=2, per_node=2, gpu=GPU, assume=Assumptions()
        )


def test_one_that_asks_for_it_is_searched(made_up, register):
    class Wanted(Toy):
        name = "wanted"

        @classmethod
        def is_tried(cls, world, whole_fits):
            return world == 4

    register("wanted", Wanted)
    for world, expected in ((2, False), (4, True)):
        estimates, _ = look(planner(small_config(), world))
        assert ("wanted" in {way.strategy for way, _ in estimates}) is expected


def test_a_strategy_with_a_stand_in_is_not_run_itself():
    with pytest.raises(AssertionError, match="stands in"):
        dry_run(small_config(strategy="zero2"), 2, 1)
