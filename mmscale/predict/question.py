"""A person's question in parts, in the order in which a training task had the same kinds of
input.
"""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from typing import Any

from mmscale.config import Config, TaskConfig, is_media
from mmscale.errors import SampleFault, UserError
from mmscale.predict.query import Part, PartReader
from mmscale.predict.raw_input import AudioInput, ImageInput, audio_bytes, image_bytes


def read_question(
    reader: PartReader,
    config: Config,
    image: ImageInput | None,
    audio: AudioInput | None,
    text: str | None,
) -> tuple[list[Part], list[str]]:
    """(parts, the prompts that were trained with such inputs).

    Raises:
        UserError: nothing was given, or a picture or sound cannot be used.
    """
    parts: dict[str, Part] = {}
    if image is not None:
        data = image_bytes(image, config.media)
        try:
            parts["image"] = reader.image(data)
        except SampleFault as fault:
            raise UserError(
                f"{_name('image', image)}: {fault}; give a whole picture within the limits"
            ) from None
    if audio is not None:
        data = audio_bytes(audio, config.media)
        try:
            parts["audio"] = reader.audio(data)
        except SampleFault as fault:
            raise UserError(
                f"{_name('audio', audio)}: {fault}; give a whole sound within the limits"
            ) from None
    if text is not None:
        parts["text"] = reader.text(checked_text(text, "text").strip())
    if not parts:
        raise UserError("no input; give image, audio or text")
    orders = _orders(config, parts) or _orders(config, parts, "classify")
    order = orders[0][0] if orders else list(parts)
    return [parts[kind] for kind in order], trained_prompts(config, parts)


def trained_prompts(config: Config, kinds: Iterable[str]) -> list[str]:
    """Prompts of the tasks whose input is of these kinds, such as image and text, each once."""
    return list(dict.fromkeys(prompt for _, prompt in _orders(config, kinds)))


def trained_heads(config: Config, kinds: Iterable[str]) -> list[tuple[str, str]]:
    """(prompt, linear head) of the classify tasks whose input is of these kinds, each once."""
    return list(
        dict.fromkeys(
            (task.prompt, task.head_name())
            for _, task in _tasks(config, kinds, "classify")
            if task.head_name() in config.model.classes
        )
    )


def _orders(
    config: Config, kinds: Iterable[str], objective: str = "next_token"
) -> list[tuple[list[str], str]]:
    """(kinds of input in the task's order, its prompt) of every task that answers to just these
    kinds.
    """
    return [(order, task.prompt) for order, task in _tasks(config, kinds, objective)]


def _tasks(
    config: Config, kinds: Iterable[str], objective: str
) -> list[tuple[list[str], TaskConfig]]:
    wanted = sorted(kinds)
    return [
        (order, task)
        for data_set in config.data.sets.values()
        for task in data_set.tasks
        if task.objective == objective
        for order in [[name.partition(".")[0] if is_media(name) else "text" for name in task.input]]
        if sorted(order) == wanted
    ]


def choose_head(prompt: str | None, heads: list[tuple[str, str]]) -> tuple[str, str]:
    """(prompt, head) of the one that was trained, or the one with ``prompt``. Raises `UserError` if
    there are several, or none.
    """
    fitting = [pair for pair in heads if prompt is None or pair[0] == prompt]
    if len(fitting) == 1:
        return fitting[0]
    if not heads:
        raise UserError("labels: no classify task had such input; give the answers to choose from")
    known = ", ".join(f"{own!r} ({head})" for own, head in heads)
    raise UserError(f"prompt: heads were trained with {known}; give the prompt of one")


def choose_prompt(prompt: str | None, trained: list[str]) -> str:
    """``prompt``, or else the one that was trained. Raises `UserError` if there are several."""
    if prompt is not None:
        return checked_text(prompt, "prompt")
    if not trained:
        return ""
    if len(trained) > 1:
        raise UserError(
            "prompt: several tasks were trained with such input; give one of "
            f"{', '.join(map(repr, trained))}"
        )
    return trained[0]


def checked_text(text: Any, where: str) -> str:
    """``text``. Raises `UserError` if it is none, such as bytes of the command line that are not
    UTF-8.
    """
    if not isinstance(text, str):
        raise UserError(f"{where}: got a {type(text).__name__}; give a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: {text[:40]!r} is no Unicode text ({error.reason}); give UTF-8"
        ) from None
    return text


def _name(kind: str, value: Any) -> str:
    return str(value) if isinstance(value, str | PathLike) else kind
