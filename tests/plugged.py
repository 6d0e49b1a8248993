"""Plug-ins as files, and a process without any."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from mmscale import plugins
from mmscale.registry import REGISTRIES

# Every import leaves the number of its process in a file beside the module.
NOTE = """
import os
with open(os.path.join(os.path.dirname(__file__), "imports.txt"), "a") as file:
    file.write(f"{os.getpid()}\\n")
"""
SHOUT = f"""
from mmscale.registry import NORMALISERS
{NOTE}
def shout(text):
    return text.upper()

NORMALISERS.register("shout", shout)
"""

# A stem, a tracker, and an objective: an answer's output is drawn to 1 everywhere.
MORE = f"""
import numpy as np
from mmscale.data.objective import Objective, TaskSizes, column
from mmscale.data.special_tokens import ANSWER
from mmscale.model.image_stems.patch import PatchStem
from mmscale.model.objective import Loss
from mmscale.registry import IMAGE_STEMS, LOSSES, OBJECTIVES, TRACKERS
{NOTE}
class Tiles(PatchStem):
    def forward(self, image_N3HW, size_N2=None):
        return super().forward(255 - image_N3HW, size_N2)

class Calm(Objective):
    name = "calm"

    def check(self, where, task):
        pass

    def describe(self, task):
        return "calm"

    def measure(self, task, tokens, prompt):
        zero = np.zeros_like(tokens[task.input[0]])
        segment = sum((tokens[field] for field in task.input), zero + 1)
        return TaskSizes(segments=[segment], count=zero + 1, predictions=zero)

    def lay(self, layout):
        layout.builder.open_segment()
        for field in layout.task.input:
            layout.add_field(field)
        at = layout.builder.add_text(np.array([ANSWER]))
        layout.builder.add("calm", (int(at[-1]), layout.task.weight / layout.count))

    def block(self, items):
        return {{"at_T": column(items, 0, np.int64), "weight_T": column(items, 1, np.float32)}}

    def lay_dry(self, builder, at, ids):
        pass

class CalmLoss(Loss):
    order = 4

    def loss(self, model, inputs, block, head):
        miss_TD = self.outputs(model, inputs, block) - 1.0
        return (miss_TD.square().mean(-1) * block["weight_T"]).sum() * inputs.positions.part

    def outputs(self, model, inputs, block):
        return inputs.hidden_TD[block["at_T"]].float()

class Notes:
    def open(self, folder, start):
        self.file = open(folder / "notes.txt", "a")

    def scalars(self, step, values):
        print(step, values["losses/calm"], file=self.file)

    def close(self):
        self.file.close()

TRACKERS.register("notes", Notes)
IMAGE_STEMS.register("tiles", Tiles)
OBJECTIVES.register("calm", Calm())
LOSSES.register("calm", CalmLoss())
"""


def imports(folder: Path) -> set[str]:
    """The processes that have imported a plug-in below ``folder``."""
    return {line for file in folder.rglob("imports.txt") for line in file.read_text().split()}


@contextmanager
def without_plugins() -> Iterator[None]:
    """This process has no plug-ins meanwhile, and those of before afterwards."""
    named, path, kinds, modules = dict(plugins._named), [*sys.path], _take_kinds(), _take_modules()
    plugins._named.clear()
    try:
        yield
    finally:
        _take_kinds()
        _take_modules()
        plugins._named.clear()
        plugins._named.update(named)
        sys.path[:] = path
        sys.modules.update(modules)
        for (number, name), kind in kinds.items():
            REGISTRIES[number]._kinds[name] = kind


def _take_kinds() -> dict[tuple[int, str], Any]:
    """Remove what plug-ins have registered."""
    return {
        (number, name): REGISTRIES[number]._kinds.pop(name) for number, name in plugins._added()
    }


def _take_modules() -> dict[str, ModuleType]:
    """Remove the modules of the tests' plug-ins."""
    names = [name for name in sys.modules if name.partition(".")[0] in ("house", "broken", "evil")]
    return {name: sys.modules.pop(name) for name in names}


def write_house(folder: Path, name: str = "shout", text: str = SHOUT) -> None:
    """The package ``house`` in ``folder``, with a plug-in of that name."""
    (folder / "house").mkdir(exist_ok=True)
    (folder / "house" / "__init__.py").write_text("")
    (folder / "house" / f"{name}.py").write_text(text)
