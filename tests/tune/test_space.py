"""The space: what it gives is in it and the same whoever asks; a fault is reported in a line."""

import math

import pytest

from mmscale.config_file import load_config
from mmscale.errors import UserError
from mmscale.tune.space import Space

RATE, LAYERS, STEM, WIDTH = (
    "train.optimizer.lr",
    "model.layers",
    "model.image_stem",
    "model.stem_width",
)
ENTRIES = {
    RATE: "{range: [1.0e-4, 1.0e-1], scale: log}",
    LAYERS: "{range: [2, 4]}",
    STEM: "{choices: [patch, cnn]}",
    WIDTH: "{choices: [32, 64], when: {model.image_stem: cnn}}",
    "model.untied": "{choices: [[], [norm], [norm, feed_forward]]}",
}


def space_of(**entries):
    entries = {name.replace("__", "."): text for name, text in entries.items()} or ENTRIES
    text = ", ".join(f"{name}: {value}" for name, value in entries.items())
    return Space(load_config("configs/train/digits.yaml", [f"tune.space={{{text}}}"]))


def test_draws_are_functions_of_seed_and_number():
    space, again = space_of(), space_of()
    points = [space.draw(3, number) for number in range(200)]
    assert points == [again.draw(3, number) for number in reversed(range(200))][::-1]
    assert points != [space.draw(4, number) for number in range(200)]
    logs = sorted(math.log10(point[RATE]) for point in points)
    assert (
        -4 <= logs[0] < -3.9 and -1.1 < logs[-1] <= -1 and abs(logs[100] + 2.5) < 0.3
    )  # evenly on the log scale
    counts = [sum(point[LAYERS] == layers for point in points) for layers in (2, 3, 4)]
    assert (
        sum(counts) == 200 and min(counts) > 40
    )  # whole numbers, the ends as likely as the middle
    assert {point[STEM] for point in points} == {"patch", "cnn"}
    assert all((WIDTH in point) == (point[STEM] == "cnn") for point in points)


def test_a_point_becomes_a_config():
    point = {RATE: 0.02, LAYERS: 3, "model.untied": ["norm"]}
    config = space_of().config(point)
    assert (config.train.optimizer.lr, config.model.layers, config.model.untied) == (
        0.02,
        3,
        ["norm"],
    )
    assert not config.tune.space and config.data.sets["digits"].weight == 1.0
    config.model.untied.append("feed_forward")
    assert point["model.untied"] == ["norm"]


def test_a_grid_has_every_combination_once():
    space = space_of(
        train__optimizer__lr="{range: [1.0e-4, 1.0e-2], scale: log, points: 3}",
        model__image_stem="{choices: [patch, cnn]}",
        model__stem_width="{choices: [32, 64], when: {model.image_stem: [cnn]}}",
    )
    points = list(space.grid())
    assert len(points) == 3 * (1 + 2)
    assert sorted({point[RATE] for point in points}) == pytest.approx([1e-4, 1e-3, 1e-2])


def test_conditions_that_can_hold_are_taken():
    for other, when, *how in (
        ("model.layers: {range: [2, 4]}", "model.layers: [2, 4.0]"),
        ("model.untied: {choices: [[], [norm]]}", "model.untied: [[]]"),
        ("model.dropout: {range: [0.0, 0.2], points: 3}", "model.dropout: 0.1", "tune.search=grid"),
    ):
        text = f"tune.space={{{other}, model.stem_width: {{choices: [32], when: {{{when}}}}}}}"
        space = Space(load_config("configs/train/digits.yaml", [text, *how]))
        points = list(space.grid())
        assert len({WIDTH in point for point in points}) == 2


def test_exploring_stays_inside_and_near():
    space, point = space_of(), {RATE: 0.09, LAYERS: 4, STEM: "cnn", WIDTH: 64, "model.untied": []}
    points = [space.explore(point, 0, number) for number in range(100)]
    assert all(1e-4 <= point[RATE] <= 1e-1 and point[LAYERS] in (2, 3, 4) for point in points)
    factors = [point[RATE] / 0.09 for point in points]
    assert (
        sum(abs(factor - 0.8) < 1e-6 or abs(factor - 1 / 0.9) < 1e-6 for factor in factors) > 60
    )  # the upper end stops it
    assert all((WIDTH in point) == (point[STEM] == "cnn") for point in points)


def test_pbt_with_several_workers_is_refused():
    """Their reports carry no checkpoint, so nobody would take over anything."""
    with pytest.raises(
        UserError, match=r"tune\.workers=2: pbt exchanges .*; use 1, or another tune\.scheduler"
    ):
        load_config("configs/tune/digits.yaml", ["tune.scheduler=pbt", "tune.workers=2"])


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (
            "train.optimiser.lr: {range: [1, 2]}",
            "unknown key 'train.optimiser'; did you mean 'optimizer'",
        ),
        ("model.layers: {range: [1.5, 2.5]}", "whole numbers"),
        ("model.image_stem: {range: [0, 1]}", "choices"),
        ("model.image_stem: {choices: [patch, vit]}", "'vit' is not one of"),
        ("model.layers: {range: [0, 3]}", "below the least value 1"),
        ("train.optimizer.lr: {range: [0.0, 1.0], scale: log}", "above 0"),
        ("train.optimizer.lr: {range: [2.0, 1.0]}", "low below high"),
        ("train.optimizer.lr: {range: [1.0, 2.0], choices: [1.0]}", "either"),
        ("train.optimizer.lr: {range: [1.0, 2.0], when: {model.layers: 3}}", "is not searched"),
        ("run.dir: {choices: [a, b]}", "remove it from the space"),
        ("ray.cpus: {choices: [1, 2]}", "remove it from the space"),
        (
            "train.steps: {choices: [10, 20]}",
            "trials are compared after equally many; give it one value",
        ),
        ("model.layers: {choices: [2.5, 3]}", "expected int, got 2.5"),
        (
            "model.layers: {choices: [2, 3], when: {model.layers: 2}}",
            "a key is no condition of its own",
        ),
        (
            "model.layers: {choices: [2], when: {model.hidden: 96}}, model.hidden: {choices: [96]}",
            "model.hidden must stand before model.layers",
        ),
        *(
            (
                f"{other}, model.stem_width: {{choices: [32], when: {{{when}}}}}",
                f"is never {reason}; name one of",
            )
            for other, when, reason in (
                ("model.image_stem: {choices: [patch, cnn]}", "model.image_stem: cnnn", "'cnnn'"),
                (
                    "model.image_stem: {choices: [patch, cnn]}",
                    "model.image_stem: [cnn, rnn]",
                    "'rnn'",
                ),
                ("model.image_stem: {choices: [patch, cnn]}", "model.image_stem: []", "[]"),
                ("model.untied: {choices: [[], [norm]]}", "model.untied: []", "[]"),
                ("model.layers: {range: [2, 4]}", "model.layers: 5", "5"),
                ("model.dropout: {range: [0.0, 0.2]}", "model.dropout: 0.1", "0.1"),
            )
        ),
    ],
)
def test_what_is_wrong_is_reported_in_a_line(entry, reason):
    with pytest.raises(UserError) as error:
        Space(load_config("configs/train/digits.yaml", [f"tune.space={{{entry}}}"]))
    assert (
        reason in str(error.value)
        and "\n" not in str(error.value)
        and "tune.space" in str(error.value)
    )
