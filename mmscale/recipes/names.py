"""The recipes there are; light, because `mmscale --help` names them."""

from __future__ import annotations

from importlib import resources

from mmscale.errors import UserError


def recipe_names() -> list[str]:
    """Every recipe."""
    folder = resources.files(__package__)
    return sorted(
        path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml")
    )


def recipe_text(name: str) -> str:
    """The file of a recipe. Raises `UserError` listing the names there are."""
    if name not in recipe_names():
        raise UserError(f"--recipe {name}: there are {', '.join(recipe_names())}")
    return resources.files(__package__).joinpath(f"{name}.yaml").read_text("utf-8")
