"""`mmscale predict`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mmscale.cli.verb import add_plugins, verb
from mmscale.errors import UserError
from mmscale.messages import report

_SHOWN = 10  # classes of a head or labels
_DECODING = ("max_new_tokens", "beams", "temperature", "top_k", "top_p", "seed")

PREDICT_EPILOG = """\
By default the answer takes the likeliest token at each position. --beams and --temperature change
that. Where classify tasks alone had such input, their linear head answers, with probabilities.

examples:
  mmscale predict runs/pets --image cat.jpg
  mmscale predict release --image cat.jpg --prompt topic --labels cat,dog
  mmscale predict runs/fsdd --audio clip.wav --beams 4
  mmscale predict release --text "The match ended" --temperature 0.8 --top-p 0.95 --seed 7
"""


def add(verbs: Any) -> None:
    """Declare the command `predict` and its options."""
    predict = verb(
        verbs, "predict", _predict, "ask a release or a run one question", PREDICT_EPILOG
    )
    add_plugins(predict)
    predict.add_argument("target", help="a release folder or a run directory")
    predict.add_argument("--image", metavar="FILE")
    predict.add_argument("--audio", metavar="FILE")
    predict.add_argument("--text", metavar="TEXT")
    predict.add_argument(
        "--prompt",
        metavar="TEXT",
        help="prompt of the training task; needed if several tasks have such input",
    )
    predict.add_argument(
        "--labels", metavar="A,B,…", help="answers to choose from, with their probabilities"
    )
    predict.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="default: 64")
    predict.add_argument(
        "--beams", type=int, default=1, metavar="N", help="beam search with N hypotheses"
    )
    predict.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="above 0: sample; about 1 is usual",
    )
    predict.add_argument(
        "--top-k", type=int, default=0, metavar="N", help="sample among the N likeliest tokens"
    )
    predict.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="sample among the likeliest tokens that have this probability together",
    )
    predict.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of sampling (default: 0)"
    )


def _predict(arguments: argparse.Namespace) -> dict[str, Any]:
    from mmscale.predict.question import trained_heads, trained_prompts
    from mmscale.release.trained_model import load_trained

    decoding = {name: getattr(arguments, name) for name in _DECODING}
    labels: list[str] = []
    if arguments.labels is not None:
        labels = [label.strip() for label in arguments.labels.split(",") if label.strip()]
        if not labels:
            raise UserError("--labels: names no answer; give some, such as --labels cat,dog")
        _refuse(decoding, "beside --labels, which are all scored")
    model = load_trained(Path(arguments.target))
    inputs = {name: getattr(arguments, name) for name in ("image", "audio", "text")}
    given = [name for name, value in inputs.items() if value is not None]
    trained = trained_prompts(model.config, given)
    if given and not labels and not trained and trained_heads(model.config, given):
        _refuse(decoding, "where a linear head answers")
        return _told(model.classify(None, **inputs, prompt=arguments.prompt), arguments.json)
    if not trained:
        report(
            "no task taught the model to answer such input; the answer is a guess (what "
            "ctc and contrastive tasks taught, mmscale eval scores)"
        )
    elif arguments.prompt is not None and arguments.prompt not in trained:
        known = ", ".join(map(repr, trained))
        report(
            f"--prompt {arguments.prompt!r}: such input was trained with {known}; the "
            "answer is a guess"
        )
    if labels:
        return _told(model.classify(labels, **inputs, prompt=arguments.prompt), arguments.json)
    answer = model.answer(**inputs, prompt=arguments.prompt, **decoding)
    if not arguments.json:
        print(answer)
    return {"answer": answer}


def _refuse(decoding: dict[str, Any], where: str) -> None:
    """Raise `UserError` for an option of decoding that was given where nothing is decoded."""
    from mmscale.predict.decoding import Decoding

    for name, value in decoding.items():
        if value != getattr(Decoding(), name):
            option = name.replace("_", "-")
            raise UserError(f"--{option}: changes nothing {where}; leave it out")


def _told(scored: list[tuple[str, float]], as_json: bool) -> dict[str, Any]:
    if not as_json:
        for label, probability in scored[:_SHOWN]:
            print(f"{probability:6.1%}  {label}")
        if len(scored) > _SHOWN:
            print(f"        and {len(scored) - _SHOWN} less likely ones (--json has them)")
    return {"answer": scored[0][0], "probabilities": dict(scored)}
