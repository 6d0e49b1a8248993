"""A release's config.json as `transformers` holds it."""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from mmscale.config import Config
from mmscale.config_file import config_from_tree
from mmscale.errors import UserError
from mmscale.model.foreign_config import drop_fetches


class MmscaleConfig(PreTrainedConfig):
    """Every key of config.json is an attribute; ``config`` is the run's resolved config as plain
    dictionaries.

    Keys that would have `transformers` fetch code, or replace a method, are left out.
    """

    model_type = "mmscale"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **keywords: Any) -> Any:
        """Also what every ``from_pretrained`` ends in."""
        known = {
            name: value
            for name, value in config_dict.items()
            if not callable(getattr(cls, name, None))
        }
        return super().from_dict(drop_fetches(known), **drop_fetches(keywords))

    def run_config(self) -> Config:
        """The run's config, checked. Raises `UserError` if it cannot be used."""
        tree: Any = getattr(self, "config", None)
        if not isinstance(tree, dict):
            raise UserError(
                f"{self.name_or_path or 'config'}: holds no config of a run; give a release of "
                "mmscale"
            )
        return config_from_tree(tree, f"{self.name_or_path or 'config'}")
