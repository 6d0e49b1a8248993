"""python examples/own_objective.py

An objective of your own as a plug-in: the model says a number, here the digit that a picture shows.

One objective is two kinds under one name. Data's half says which fields a task reads, how many
tokens it takes and what is taught where. The model's half is the loss and its weights. A config
names this module under `plugins:`, a command by `--plugin` (docs/plugins.md).

Expect half a minute on two cores, and a squared error that falls below that of always saying the
mean of the digits (about 8).
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import nn
from train_from_python import small_config

from mmscale.config import TaskConfig
from mmscale.data.index.dataset import Dataset
from mmscale.data.objective import Objective, TaskSizes, column
from mmscale.data.special_tokens import ANSWER
from mmscale.demo.digits import build_digits
from mmscale.errors import SampleFault
from mmscale.model.objective import Loss
from mmscale.plugins import import_plugins
from mmscale.registry import LOSSES, OBJECTIVES
from mmscale.train.loop import train

NAME = "regress"  # {objective: regress, input: [image], target: json.digit}


class Regress(Objective):
    """One segment: input fields · prompt · <|answer|>, whose output is drawn to the number.

    The block, a row for each sample: ``at_T`` int64, flat position of the <|answer|>; ``value_T``
    float32, the number; ``weight_T`` float32, task weight over the step's number of samples.
    """

    name = NAME

    def measure(self, task, tokens, prompt):
        """See `Objective`: tokens of every sample, known before anything is read."""
        zero = np.zeros_like(tokens[task.target])
        segment = sum((tokens[field] for field in task.input), zero + prompt + 1)
        return TaskSizes(segments=[segment], count=zero + 1, predictions=zero)

    def check_sample(self, sample, task):
        """A target that is no number makes the sample a broken one, which is counted."""
        try:
            finite = math.isfinite(float(sample.raw[task.target]))
        except ValueError:
            finite = False
        if not finite:
            raise SampleFault(f"{sample.raw[task.target][:20]!r} is no number")

    def lay(self, layout):
        """See `Objective`."""
        layout.builder.open_segment()
        for field in layout.task.input:
            layout.add_field(field)
        at = layout.builder.add_text([*layout.prompt, ANSWER])
        value = float(layout.sample.raw[layout.task.target])
        layout.builder.add(NAME, (int(at[-1]), value, layout.task.weight / layout.count))

    def block(self, items):
        """See `Objective`."""
        return {
            "at_T": column(items, 0, np.int64),
            "value_T": column(items, 1, np.float32),
            "weight_T": column(items, 2, np.float32),
        }

    def lay_dry(self, builder, at, ids):
        """See `Objective`. Nothing: the head's output is one number a sample."""


class RegressLoss(Loss):
    """Mean squared error of a linear head at the <|answer|>."""

    order = 4  # the next free number: see `Loss`
    width_rules: ClassVar = {"regress_head.": "output"}  # it reads the model's width

    def weights(self, config):
        """See `Loss`."""
        return {"regress_head": nn.Linear(config.width, 1)}

    def loss(self, model, inputs, block, head):
        """See `Loss`."""
        error_T = self.outputs(model, inputs, block) - block["value_T"]
        return (block["weight_T"] * error_T**2).sum() * inputs.positions.part

    def outputs(self, model, inputs, block):
        """The numbers, float32 [T]."""
        return model.regress_head(inputs.hidden_TD[block["at_T"]]).float()[:, 0]


def main() -> None:
    """Train with it, beside an objective of ours."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[2])
    parser.add_argument("--dir", type=Path, help="data and run go here; default: a new folder")
    folder = parser.parse_args().dir or Path(tempfile.mkdtemp(prefix="mmscale-"))
    build_digits(folder / "digits", samples=120)

    config = small_config(folder)
    config.plugins = [Path(__file__).stem]
    import_plugins(config.plugins)  # now the name can be used
    digits, task = config.data.sets["digits"], TaskConfig(input=["image"], prompt="number")
    task.objective, task.target = NAME, "json.digit"
    digits.tasks = [task, TaskConfig(input=["image"], prompt="digit", target="json.label")]
    config.run.dir, config.train.steps, config.eval = str(folder / "regress_run"), 60, {}
    config.check()
    run_dir = Path(train(config).run_dir)

    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    errors = [json.loads(line)["losses"][NAME] for line in lines]
    data = Dataset.open(digits.shards)
    spread = np.var([float(data.text("json.digit", row) or 0) for row in range(len(data))])
    print(f"{run_dir}: {len(lines)} steps, with {', '.join(json.loads(lines[0])['losses'])}")
    print(
        f"result: squared error {errors[0]:.2f} at first, {np.mean(errors[-5:]):.2f} in the last "
        f"five steps; the mean alone gives {spread:.2f}"
    )


if __name__ == "__main__":
    main()  # which imports this file once more, as a plug-in
else:
    OBJECTIVES.register(NAME, Regress())
    LOSSES.register(NAME, RegressLoss())
