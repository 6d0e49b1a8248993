"""Plans refuse what training refuses, in the same words, and nothing else."""

import pytest
from test_dry_plan import small_config

from mmscale.errors import UserError
from mmscale.gpu import find_gpu
from mmscale.plan.estimate import Assumptions
from mmscale.plan.report import describe, facts_of
from mmscale.plan.search import Planner


def test_the_planned_gpu_has_the_8_bit_products():
    """And not the CPU the plan is made on."""
    config = small_config(float8="rowwise")
    planned = Planner(config, 2, 2, find_gpu("h100"), Assumptions())
    way = planned.own_way()
    assert "8-bit products" in describe(planned, facts_of(planned, way, planned.evaluate(way), 1e9))
    with pytest.raises(UserError, match="a100-80gb has no 8-bit floating-point products"):
        Planner(config, 2, 2, find_gpu("a100"), Assumptions()).evaluate(way)
