"""tune.html: parallel coordinates, learning curves and the trials, by plotly; needs no network to
be looked at.
"""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import Any

from mmscale.config import Config
from mmscale.tune.records import Trial
from mmscale.tune.space import Point

_STYLE = """
body {
  font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem;
  color: #222;
}
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; font-size: 13px; }
td, th { padding: .25rem .7rem; text-align: right; }
th { border-bottom: 2px solid #888; }
tr:nth-child(even) { background: #f4f4f4; } tr.best { background: #d9f2dd; }
td:last-child, th:last-child { text-align: left; } div.wide { overflow-x: auto; }
"""
_MOST_POINTS = 100  # of one curve


def write_page(
    *,
    path: Path,
    lines: list[str],
    names: list[str],
    trials: list[Trial],
    best: Trial,
    losses: dict[int, list[tuple[int, float]]],
    config: Config,
) -> None:
    """Write ``path``. ``lines``: of HTML, shown first; ``names``: the searched keys; ``losses``: by
    trial.
    """
    from plotly.offline import get_plotlyjs

    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>mmscale tune</title>",
        f"<style>{_STYLE}</style><script>{get_plotlyjs()}</script>",
        f"<h1>{html.escape(config.description or config.run.dir)}</h1>",
        *(f"<p>{line}</p>" for line in lines),
        "<h2>Which values, which score</h2>",
        "<p>A line is a trial; drag along an axis to pick some, and an axis to move it.</p>",
        _draw(_coordinates(names, trials, config)),
        "<h2>Score over steps</h2>",
        _draw(
            _curves(
                {trial.number: sorted(trial.scores.items()) for trial in trials},
                trials,
                best,
                config.tune.metric,
            )
        ),
        "<h2>Training loss over steps</h2>",
        _draw(_curves(losses, trials, best, "loss, mean of the curve's neighbours")),
        "<h2>Trials</h2>",
        _table(names, trials, best, config),
    ]
    path.write_text("\n".join(parts), encoding="utf-8")


def _draw(figure: Any) -> str:
    return str(
        figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
    )


def _coordinates(names: list[str], trials: list[Trial], config: Config) -> Any:
    from plotly import graph_objects

    shown = [trial for trial in trials if math.isfinite(trial.score)]
    axes = [_axis(name, config, [trial.point for trial in shown]) for name in names]
    axes.append({"label": "steps", "values": [trial.steps for trial in shown]})
    scores = [trial.score for trial in shown]
    axes.append({"label": config.tune.metric, "values": scores})
    line = {
        "color": scores,
        "colorscale": "Viridis",
        "showscale": True,
        "reversescale": config.tune.better() == "min",
    }
    return graph_objects.Figure(graph_objects.Parcoords(line=line, dimensions=axes)).update_layout(
        height=460
    )


def _axis(name: str, config: Config, points: list[Point]) -> dict[str, Any]:
    """One vertical axis; a key whose condition does not hold is at the bottom, as –."""
    parameter, label = config.tune.space[name], html.escape(name.rpartition(".")[2])
    values = [point.get(name) for point in points]
    if parameter.choices:
        ticks = ["–", *map(str, parameter.choices)]
        at = [0 if value is None else 1 + parameter.choices.index(value) for value in values]
        skipped = 0 if None in values else 1
        return {
            "label": label, "values": at, "range": [skipped, len(ticks) - 1],
            "tickvals": list(range(skipped, len(ticks))), "ticktext": ticks[skipped:],
        }  # fmt: skip
    low, high = parameter.range
    scale = math.log10 if parameter.scale == "log" else float
    bottom, top = scale(low), scale(high)
    absent = bottom - 0.15 * (top - bottom)
    ticks_at = [bottom + (top - bottom) * part / 4 for part in range(5)]
    tick_texts = [f"{10**tick if parameter.scale == 'log' else tick:.3g}" for tick in ticks_at]
    if None in values:
        ticks_at, tick_texts, bottom = [absent, *ticks_at], ["–", *tick_texts], absent
    return {
        "label": label, "values": [absent if value is None else scale(value) for value in values],
        "range": [bottom, top], "tickvals": ticks_at, "ticktext": tick_texts,
    }  # fmt: skip


def _curves(curves: dict[int, Any], trials: list[Trial], best: Trial, label: str) -> Any:
    from plotly import graph_objects

    figure = graph_objects.Figure()
    longest = max(map(len, curves.values()), default=0)
    group = max(1, -(-longest // _MOST_POINTS))
    # The best one is drawn last, above the others.
    for trial in sorted(trials, key=lambda trial: trial.number == best.number):
        curve = _thin(list(curves.get(trial.number, [])), group)
        if not curve:
            continue
        line = {"color": "#1a7f37", "width": 3} if trial is best else {"width": 1}
        figure.add_trace(
            graph_objects.Scatter(
                x=[step for step, _ in curve], y=[score for _, score in curve], name=trial.name,
                line=line, opacity=1.0 if trial is best else 0.6,
                mode="lines+markers" if len(curve) < 20 else "lines",
            )
        )  # fmt: skip
    return figure.update_layout(
        height=420, xaxis_title="step", yaxis_title=html.escape(label), template="simple_white"
    )


def _thin(curve: list[tuple[int, float]], group: int) -> list[tuple[int, float]]:
    """Means of ``group`` neighbours."""
    out = []
    for start in range(0, len(curve), group):
        part = curve[start : start + group]
        out.append((part[-1][0], sum(value for _, value in part) / len(part)))
    return out


def _table(names: list[str], trials: list[Trial], best: Trial, config: Config) -> str:
    worst = math.inf if config.tune.better() == "min" else -math.inf

    def order(trial: Trial) -> tuple[int, float]:
        score = trial.score if math.isfinite(trial.score) else worst
        return -trial.steps, score if config.tune.better() == "min" else -score

    head = [
        "trial",
        "status",
        "steps",
        config.tune.metric,
        *(name.rpartition(".")[2] for name in names),
        "reason",
    ]
    rows = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    for trial in sorted(trials, key=order):
        cells = [trial.name, trial.status, str(trial.steps), _cell_text(trial.score)]
        cells += [_cell_text(trial.point.get(name)) for name in names]
        cells.append(trial.reason)
        kind = ' class="best"' if trial is best else ""
        rows.append(
            f"<tr{kind}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
        )
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def _cell_text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
