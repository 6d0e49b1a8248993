"""A model run in another type than its parameters have."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def run_in(compute: torch.dtype, model: nn.Module, *arguments: Any) -> Any:
    """``model(*arguments)`` on copies of its fp32 parameters in another type, whose gradients flow
    back as fp32.
    """
    if compute == torch.float32:
        return model(*arguments)
    copies = {name: p.to(compute) for name, p in model.named_parameters()}
    return torch.func.functional_call(model, copies, arguments)
