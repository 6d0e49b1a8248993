"""Scores on held-out shards."""

from __future__ import annotations

from dataclasses import dataclass

from mmscale.config.keys import BY_KEY, check_field, key
from mmscale.errors import UserError
from mmscale.registry import NORMALISERS

PLAIN = "whitespace"

# What each kind of score reports, as shares of 1 (mmscale/evaluate/run.py).
SCORES = {
    "classify": ("accuracy", "macro_f1"),
    "transcribe": ("wer", "cer", "exact"),
    "retrieve": ("recall@1", "recall@5", "recall@10"),
}


@dataclass(kw_only=True)
class EvalConfig:
    """One score to compute on held-out shards."""

    task: str = key("classify", "Kind of score.", choices=("classify", "transcribe", "retrieve"))
    shards: list[str] = key([], "Held-out shards; --data replaces them.")
    input: list[str] = key([], "classify, transcribe: fields the model is given.")
    prompt: str = key("", "classify, transcribe: the prompt of the training task.")
    target: str = key("", "classify, transcribe: the true answer.")
    labels: list[str] = key(
        [], "classify: the answers to choose from; empty: every target in the shards."
    )
    query: str = key("", "retrieve: the field that asks.")
    candidates: str = key("", "retrieve: the field that is searched.")
    match: str = key(
        "",
        "retrieve: candidates with equal values of this field count as found. key: those with "
        "equal keys, also of different shards. Empty: the sample itself alone.",
    )
    max_new_tokens: int = key(64, "transcribe: longest answer, tokens.", low=1)
    beams: int = key(
        1,
        "transcribe: hypotheses of beam search; 1: greedy, the likeliest token at each position.",
        low=1,
    )
    decoder: str = key(
        "answer",
        "transcribe: answer: the model's answer; ctc: what the clip's own tokens spell, which a "
        "ctc task taught.",
        choices=("answer", "ctc"),
    )
    normalise: str = key(
        PLAIN,
        "transcribe: what is done to both texts before they are compared: whitespace: any run of "
        "it becomes one space; none: nothing.",
        choices=NORMALISERS.names,
    )
    head: str = key("", "classify: the linear head to use; empty: the likelihood of the answers.")

    def fields(self) -> list[str]:
        """Every field the score reads."""
        match = "" if self.match == BY_KEY else self.match
        names = (*self.input, self.target, self.query, self.candidates, match)
        return [name for name in names if name]


@dataclass(kw_only=True)
class RobustnessConfig:
    """How ``mmscale eval --task robustness`` attacks the classify scores, and looks through the
    training labels.
    """

    image: float = key(8.0, "PGD: largest change of a colour value, of 255.", low=0.0)
    audio: float = key(0.05, "PGD: largest change of a log-mel value; 0.05 is 2 dB.", low=0.0)
    steps: int = key(10, "PGD: gradient steps.", low=1)
    characters: float = key(0.1, "Share of a text's characters that are changed.", low=0.0)
    samples: int = key(
        256, "Samples of each score that are attacked, drawn by the seed; 0: all.", low=0
    )
    scan: int = key(2000, "Training samples of each task whose labels are checked; 0: all.", low=0)


def check_eval(where: str, score: EvalConfig) -> None:
    for name in score.fields():
        check_field(where, name)
    needed: dict[str, str | list[str]]
    if score.task == "retrieve":
        needed = {"query": score.query, "candidates": score.candidates}
    else:
        needed = {"input": score.input, "target": score.target}
    if score.task != "transcribe" and score.decoder != "answer":
        raise UserError(f"{where}.decoder: is for transcribe, not {score.task}; leave it out")
    if score.decoder == "ctc" and not (
        len(score.input) == 1 and score.input[0].startswith("audio")
    ):
        raise UserError(
            f"{where}.input: ctc spells one clip; give one audio field, or decoder: answer"
        )
    if score.task != "transcribe" and score.normalise != PLAIN:
        raise UserError(f"{where}.normalise: is for transcribe, not {score.task}; leave it out")
    if score.head and score.labels:
        raise UserError(
            f"{where}.labels: a linear head has classes of its own; remove labels or head"
        )
    for name, value in needed.items():
        if not value:
            raise UserError(f"{where}.{name}: missing; {score.task} needs it")
