"""Pretrained encoders of the `transformers` library, the *towers*: what the ``pretrained`` stems of
pictures and of sound share.

A tower's architecture travels in the config as JSON (``model.image_tower_config``), so that a run
or a release can build it without the folder its weights came from.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from mmscale.errors import UserError
from mmscale.model.foreign_config import drop_all_fetches
from mmscale.model.stem import Stem

WHISPER_FRAMES_A_POSITION = 2  # its second convolution has stride 2
LARGEST, _MOST_WEIGHTS = 1 << 20, 10_000  # far above any tower's, and soon reached


def import_transformers() -> Any:
    """The library. Raises `UserError` where it is not installed."""
    try:
        import transformers
    except ImportError:
        raise UserError(
            "model.image_stem=pretrained and model.audio_stem=pretrained need the transformers "
            "library; pip install 'mmscale[pretrained]'"
        ) from None
    return transformers


def read_architecture(tree: dict[str, Any]) -> Any:
    """A config of the library from that of a tower, which may come from anyone.

    Raises `ValueError`, or whatever the library raises, if it is none.
    """
    if "timm" in str(tree.get("model_type")):
        raise ValueError("models of timm are looked up by a name, which may be one of the Hub's")
    tree = drop_all_fetches(tree)
    _check_numbers(tree)
    return import_transformers().AutoConfig.for_model(**tree)


def _check_numbers(value: Any) -> None:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            _check_numbers(inner)
    elif isinstance(value, int) and abs(value) > LARGEST:
        raise ValueError(f"a number above {LARGEST:,}")


@contextlib.contextmanager
def _few_weights() -> Iterator[None]:
    """A number of layers has as many names as there are models, so weights are counted as they are
    made.
    """
    made = 0

    def count(*ignored: Any) -> None:
        nonlocal made
        made += 1
        if made > _MOST_WEIGHTS:
            raise ValueError(f"more than {_MOST_WEIGHTS:,} weights")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def read_facts(text: str, key: str) -> dict[str, Any]:
    """What ``model.KEY`` says of a tower. Raises `UserError` if it is no architecture."""
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        facts = None
    if not isinstance(facts, dict) or not isinstance(facts.get("config"), dict):
        raise UserError(
            f"model.{key}: is no tower's architecture; leave it empty and name the tower's folder"
        )
    return facts


def build_tower(
    tree: dict[str, Any], key: str, make: Callable[[Any], nn.Module], sizes: Sequence[str]
) -> tuple[Any, nn.Module]:
    """(architecture, tower without its weights). Raises `UserError` if the library cannot, or
    ``sizes`` are none.
    """
    try:
        with _few_weights():
            architecture = read_architecture(tree)
            tower = make(architecture)
    except UserError:
        raise
    except Exception as error:  # of any kind: the library checks little of what a config says
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"model.{key}: transformers cannot build this tower ({reason}); name the folder of "
            "another"
        ) from None
    for name in sizes:
        if type(getattr(architecture, name, None)) is not int or getattr(architecture, name) < 1:
            raise UserError(f"model.{key}: its {name} is no size; name the folder of another tower")
    return architecture, tower


class Tower(Stem):
    """A stem around a tower, with what every one needs: buffers made anew, gradients only where it
    is trained.
    """

    # The tower has its own width, and so has what the projection reads.
    width_rules: ClassVar[Mapping[str, str]] = {
        "tower.": "input",
        "tower_norm.": "input",
        "project.": "input",
        "norm.": "input",
    }
    loaded: ClassVar[tuple[str, ...]] = ("tower.",)

    def __init__(self, tower: nn.Module, trained: bool) -> None:
        super().__init__()
        self.tower, self._trained = tower, trained
        self._numbered: list[tuple[nn.Module, int]] = []
        for module in tower.modules():
            for name in list(module._buffers):
                buffer = module._buffers.pop(name)
                # The one kind of buffer these towers have; a model without buffers can be built
                # without memory.
                if name != "position_ids" or buffer is None:
                    raise UserError(
                        f"model: its tower keeps {name} beside its weights, which is not "
                        "supported; use one such as SigLIP, CLIP or DINOv2"
                    )
                self._numbered.append((module, buffer.shape[-1]))
        if not trained:
            tower.requires_grad_(False)

    def train(self, mode: bool = True) -> Tower:
        super().train(mode)
        self.tower.train(mode and self._trained)
        return self

    def run(self, *inputs: Tensor, **settings: Any) -> Tensor:
        """The tower's last hidden states."""
        for module, count in self._numbered:
            module.position_ids = torch.arange(count, device=inputs[0].device)[None]
        # An attack asks for the inputs' gradients, also through a tower that is not trained.
        with (
            contextlib.nullcontext()
            if self._trained or inputs[0].requires_grad
            else torch.no_grad()
        ):
            out: Tensor = self.tower(*inputs, **settings).last_hidden_state
        return out


def transformer_flops(*, width: int, layers: int, hidden: float, positions: float) -> float:
    """FLOPs of one position of a transformer that sees ``positions``, without the convolution in
    front of it; a multiply-add counts as two.
    """
    return float(layers * (2 * (4 * width**2 + 2 * width * hidden) + 4 * width * positions))
