"""What is known of every trial, in ``tune.jsonl``: a line for each thing that happened, written
when it happened.

The search, the early stopping and the report are all functions of these lines, so a driver that was
killed resumes from them; nothing is pickled.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmscale.durable import make_folder, write_durably
from mmscale.errors import UserError
from mmscale.tune.space import Point

FILE = "tune.jsonl"


@dataclass(kw_only=True)
class Trial:
    """One point of the space and what became of it."""

    number: int
    point: Point
    # By finished steps, each scored once.
    scores: dict[int, float] = field(default_factory=dict)
    # Spent to get there since the score before.
    seconds: dict[int, float] = field(default_factory=dict)
    # (trial, step) from whose weights it continued.
    parents: list[tuple[int, int]] = field(default_factory=list)
    trained: int = 0  # steps, those of lost starts not counted
    at: int = 0  # steps of its weights now
    status: str = "open"  # open, finished, stopped, failed
    reason: str = ""

    @property
    def name(self) -> str:
        """Of its folder."""
        return trial_name(self.number)

    @property
    def steps(self) -> int:
        """Steps at the last score; 0 before the first."""
        return max(self.scores, default=0)

    @property
    def score(self) -> float:
        """The last score; NaN before the first."""
        return self.scores.get(self.steps, math.nan)

    @property
    def generation(self) -> int:
        """How often it took over another's weights."""
        return len(self.parents)


def trial_name(number: int) -> str:
    """Name of a trial's folder."""
    return f"trial-{number:04d}"


class Records:
    """The trials of ``folder``, read back and added to.

    Args:
        folder: the search's run.dir.
        job: what must be equal for old trials to count.
        resume: continue the trials that are there.

    Raises:
        UserError: there are trials and ``resume`` was not asked for, there is no search and it was,
            the trials belong to another search, or a line is damaged.
    """

    def __init__(self, folder: Path, job: dict[str, Any], resume: bool) -> None:
        self._path = folder / FILE
        self.trials: dict[int, Trial] = {}
        lines = read_lines(self._path)
        # A search that came to no trial, such as one whose cluster was not there.
        if len(lines) == 1:
            lines = []
        if lines and not resume:
            raise UserError(
                f"{folder}: holds the trials of a search; add --resume to continue it, or choose "
                "another run.dir"
            )
        if resume and not self._path.exists():
            raise UserError(f"--resume: {folder} holds no search yet; leave it out")
        if lines and lines[0].get("job") != job:
            before = lines[0].get("job") or {}
            changed = sorted(name for name in {*job, *before} if job.get(name) != before.get(name))
            raise UserError(
                f"--resume: {self._path} was made with another {', '.join(changed)}; restore that, "
                "or choose another run.dir"
            )
        lines = lines or [{"job": job}]
        for line in lines[1:]:
            self._apply(line)
        make_folder(folder)
        # A line cut short by a crash must not swallow the next one.
        whole = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_durably(self._path, whole)

    def begin(self, number: int, point: Point) -> None:
        """A new trial."""
        self._add({"event": "trial", "number": number, "point": point})

    def score(self, number: int, step: int, score: float, seconds: float, node: str) -> None:
        """A trial was scored after ``step`` steps."""
        finite = score if math.isfinite(score) else None  # JSON has no NaN
        self._add(
            {
                "event": "score",
                "number": number,
                "step": step,
                "score": finite,
                "seconds": seconds,
                "node": node,
            }
        )

    def exchange(self, number: int, parent: int, step: int, point: Point) -> None:
        """A trial continues from the weights of ``parent`` at ``step``, with other values."""
        self._add(
            {"event": "exchange", "number": number, "parent": parent, "step": step, "point": point}
        )

    def end(self, number: int, status: str, reason: str = "") -> None:
        """A trial is over."""
        self._add({"event": "end", "number": number, "status": status, "reason": reason})

    def _add(self, line: dict[str, Any]) -> None:
        self._apply(line)
        self._write(line)

    def _write(self, line: dict[str, Any]) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _apply(self, line: dict[str, Any]) -> None:
        number, event = line["number"], line["event"]
        if event == "trial":
            self.trials[number] = Trial(number=number, point=line["point"])
            return
        trial = self.trials[number]
        if event == "score":
            trial.scores[line["step"]] = math.nan if line["score"] is None else line["score"]
            trial.seconds[line["step"]] = trial.seconds.get(line["step"], 0.0) + line["seconds"]
            trial.trained += line["step"] - trial.at
            trial.at = line["step"]
        elif event == "exchange":
            parent = self.trials[line["parent"]]
            trial.point = line["point"]
            trial.parents.append((line["parent"], line["step"]))
            trial.at = line["step"]
            # The curve up to there is the parent's.
            trial.scores = {
                step: score for step, score in parent.scores.items() if step <= line["step"]
            }
        else:
            trial.status, trial.reason = line["status"], line["reason"]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines but a last one that a crash cut short; none if there is
    no file.

    Raises:
        UserError: a line is damaged, and others follow.
    """
    lines: list[dict[str, Any]] = []
    # Not splitlines: a string may hold U+2028 or U+0085, which end a line elsewhere.
    texts = path.read_bytes().split(b"\n") if path.exists() else []
    for number, text in enumerate(texts, 1):
        try:
            lines.append(json.loads(text))
        except ValueError:
            if any(texts[number:]):
                raise UserError(
                    f"{path}: line {number} is damaged; restore the file, or choose another run.dir"
                ) from None
    return lines
