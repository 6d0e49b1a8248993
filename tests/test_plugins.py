"""Plug-ins: what the caller names is imported; what a folder names never is."""

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from conftest import ROOT, run_module
from patience import patience
from plugged import MORE, SHOUT, imports, without_plugins, write_house
from small_run import save_run, small_config, write_shards

import mmscale
from mmscale import plugins
from mmscale.capacity.dry_run import dry_run
from mmscale.cli import build_parser, main
from mmscale.config import ModelConfig
from mmscale.config_file import config_from_tree, dump_config, load_config, load_model_config
from mmscale.errors import UserError
from mmscale.evaluate.run import evaluate
from mmscale.plugins import import_plugins
from mmscale.registry import LOSSES, NORMALISERS, OBJECTIVES
from mmscale.release.export import ExportOptions, export
from mmscale.release.init_from import load_initial_weights
from mmscale.release.release_manifest import write_manifest
from mmscale.release.trained_model import load_trained
from mmscale.release.verify_release import verify_release
from mmscale.strict_yaml import read_yaml, write_yaml


@pytest.fixture(autouse=True)
def as_new():
    """Every test begins without plug-ins, and leaves none."""
    with without_plugins():
        yield


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The current directory, which holds the package ``house`` with the plug-in ``house.shout``."""
    write_house(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run and a release whose configs name ``house.shout``."""
    folder = tmp_path_factory.mktemp("made")
    write_shards(folder / "shards", count=4)
    config = small_config(folder / "run", folder / "shards")
    config.plugins, config.eval["speech"].normalise = ["house.shout"], "shout"
    save_run(config)
    plain = small_config(folder / "plain", folder / "shards")
    save_run(plain)
    export(folder / "plain", folder / "release")
    rewrite(folder / "release", lambda tree: tree.update(plugins=["house.shout"]))
    return folder


def rewrite(release: Path, change) -> None:
    """Another config, and a manifest that fits it."""
    path = release / "config.json"
    tree = json.loads(path.read_text())
    change(tree["config"])
    path.write_text(json.dumps(tree))
    (release / "manifest.json").unlink()
    write_manifest(release)


@pytest.fixture
def digits(tmp_path, small_run) -> Path:
    """A config file of the caller's own that names the plug-in."""
    path = tmp_path / "mine.yaml"
    overrides = [*small_run, "train.steps=2", f"run.dir={tmp_path}/run"]
    config = load_config(ROOT / "configs/train/digits.yaml", overrides)
    path.write_text(dump_config(config).replace("plugins: []", "plugins: [house.shout]"))
    return path


# What the caller may name.


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a b",
        "../house",
        "/tmp/house.py",
        "house.",
        ".house",
        "house/shout",
        "a" * 300,
        "häuser",
    ],
)
def test_a_name_is_a_modules_name(here, name):
    with pytest.raises(UserError, match="is no name of a module; write it as in an import"):
        import_plugins([name])


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("os", "plug-in os: registers nothing; have it call register"),
        ("house", "plug-in house: registers nothing"),
        ("mmscale.cli", "plug-in 'mmscale.cli' is a part of mmscale"),
        ("nowhere", "plug-in nowhere: there is no module nowhere; install it, or start in the"),
        ("house.nowhere", r"plug-in house\.nowhere: there is no module house\.nowhere"),
    ],
)
def test_a_module_that_is_no_plug_in_is_refused(here, name, line):
    with pytest.raises(UserError, match=line):
        import_plugins([name])
    assert "os" in sys.modules and plugins.imported_plugins() == []


HALF = (
    "from types import SimpleNamespace\nfrom mmscale.registry import {0}\n"
    "{0}.register('guess', SimpleNamespace(name='guess', order=4))"
)
BROKEN = {
    "raises": ("1 / 0", r"fails when it is imported \(ZeroDivisionError: .*broken\.py:1\)"),
    "no Python": ("def", r"fails when it is imported \(SyntaxError: .*broken\.py, line 1"),
    "leaves": ("raise SystemExit(3)", r"fails when it is imported \(SystemExit: 3"),
    "needs more": ("import not_here", "ModuleNotFoundError: No module named 'not_here'"),
    "nothing": ("x = 1", "registers nothing"),
    "a name of ours": (
        "from mmscale.registry import NORMALISERS\nNORMALISERS.register('none', str.lower)",
        "plug-in broken: text normaliser 'none' exists already; give yours another name",
    ),
    "no loss": (
        HALF.format("OBJECTIVES"),
        "'guess' is registered in OBJECTIVES but not in LOSSES; register its other half in LOSSES",
    ),
    "no order": (
        "from mmscale.registry import LOSSES\nLOSSES.register('guess', object())",
        "plug-in broken: objective's loss 'guess': has no 'order'; set it in its class",
    ),
    "no data": (HALF.format("LOSSES"), "'guess' is registered in LOSSES but not in OBJECTIVES"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_plug_in_is_one_line_and_may_be_corrected(here, fault):
    text, line = BROKEN[fault]
    (here / "broken.py").write_text(text)
    with pytest.raises(UserError, match=line) as caught:
        import_plugins(["broken"])
    assert "broken" in str(caught.value) and "\n" not in str(caught.value)
    assert "guess" not in {*OBJECTIVES.names(), *LOSSES.names()}
    # As somebody does in a notebook, whose process lives on.
    (here / "broken.py").write_text(SHOUT.replace("shout", "whisper"))
    import_plugins(["broken"])
    assert NORMALISERS["whisper"]("a") == "A" and plugins.imported_plugins() == ["broken"]


def test_a_name_of_another_plug_in_is_refused(here):
    (here / "broken.py").write_text(SHOUT)
    import_plugins(["house.shout"])
    with pytest.raises(UserError, match="plug-in broken: text normaliser 'shout' exists already"):
        import_plugins(["broken"])
    assert NORMALISERS["shout"].__module__ == "house.shout"


def test_naming_twice_or_after_an_import_of_ones_own_is_well(here):
    sys.path.append(str(here))
    import_module("house.shout")
    import_plugins(["house.shout", "house.shout"])
    import_plugins("house.shout")
    assert (here / "house" / "imports.txt").read_text().split() == [str(os.getpid())]


# The caller's own config file.


def test_a_config_file_names_plug_ins_and_is_checked_with_their_choices(here, digits):
    score = "eval.speech={task: transcribe, input: [audio], target: text, normalise: shout}"
    config = load_config(digits, [score])
    assert config.plugins == ["house.shout"] and config.eval["speech"].normalise == "shout"
    assert load_config(_written(here, dump_config(config))).plugins == ["house.shout"]


def test_without_its_plug_in_a_choice_is_unknown_and_the_line_says_so(here, digits):
    score = "eval.speech={task: transcribe, input: [audio], target: text, normalise: shout}"
    with pytest.raises(UserError, match=r"'shout' is not one of .*; a plug-in's needs --plugin"):
        load_config(digits, ["plugins=[]", score])
    assert not imports(here)


def test_options_are_added_to_the_files_plug_ins_and_kept(here, digits):
    (here / "broken.py").write_text(SHOUT.replace("shout", "whisper"))
    config = load_config(digits, [], ["broken", "house.shout"])
    assert config.plugins == ["house.shout", "broken"]


def test_an_override_and_a_base_file_are_the_callers_own(here, digits):
    assert load_config(digits, ["plugins=house.shout"]).plugins == ["house.shout"]
    upper = _written(here, f"base: {digits}\nseed: 3\n")
    assert load_config(upper).plugins == ["house.shout"]


@pytest.mark.parametrize("value", ["[1]", "{a: b}", "[[house]]"])
def test_plug_ins_are_names(here, digits, value):
    with pytest.raises(UserError, match="plugins: expected names of modules"):
        load_config(digits, [f"plugins={value}"])


def test_a_models_file_may_name_plug_ins(here):
    text = "width: 64\nplugins: [house.shout]\n"
    assert load_model_config(_written(here, text))[0].width == 64 and imports(here)


def _written(folder: Path, text: str) -> Path:
    path = folder / "written.yaml"
    path.write_text(text)
    return path


# What folders say.


def _auto(kind):
    return lambda made: getattr(pytest.importorskip("transformers"), kind).from_pretrained(
        made / "release"
    )


def _from_config(made):
    auto = pytest.importorskip("transformers")
    return auto.AutoModel.from_config(auto.AutoConfig.from_pretrained(made / "release"))


def _init_from(made):
    config = ModelConfig(init_from=str(made / "release"))
    try:
        load_initial_weights(pytest.importorskip("torch").nn.Linear(1, 1), config)
    except UserError as error:
        if "has no tensor weight" not in str(error):  # so it was opened, which is enough
            raise


WAYS = {
    "eval RUN": lambda made: evaluate(made / "run", tasks=["speech"], progress=False),
    "eval RELEASE": lambda made: evaluate(made / "release", tasks=["speech"], progress=False),
    "export": lambda made: export(made / "run", made / "again"),
    "export --merge": lambda made: export(
        made / "plain", made / "mean", options=ExportOptions(merge=[made / "run"])
    ),
    "predict RUN": lambda made: load_trained(made / "run"),
    "predict RELEASE": lambda made: load_trained(made / "release"),
    "mmscale.load": lambda made: mmscale.load(made / "release"),
    "verify": lambda made: verify_release(made / "release"),
    "init_from": _init_from,
    "AutoModel": _auto("AutoModel"),
    "AutoProcessor": _auto("AutoProcessor"),
    "AutoModel.from_config": _from_config,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_folder_imports_nothing_by_itself(here, made, way):
    with pytest.raises(UserError, match=r"needs the plug-in house\.shout.* --plugin house\.shout"):
        WAYS[way](made)
    assert not imports(here) and "house" not in sys.modules
    import_plugins(["house.shout"])
    WAYS[way](made)


def test_load_takes_plug_ins(here, made):
    mmscale.load(made / "release", plugins=["house.shout"])
    assert imports(here)


@pytest.mark.parametrize("kind", ["AutoModel", "AutoProcessor"])
def test_transformers_takes_plug_ins(here, made, kind):
    auto = getattr(pytest.importorskip("transformers"), kind)
    auto.from_pretrained(made / "release", plugins=["house.shout"])
    assert imports(here)


HOSTILE = ["evil", "os", "mmscale.cli", "../evil", "/tmp/evil", "evil.py", "a\nb", "", "x" * 10**6]


@pytest.mark.parametrize(
    "named", [*([name] for name in HOSTILE), HOSTILE, "evil", ["evil"] * 10**5]
)
def test_a_hostile_release_imports_nothing(here, made, tmp_path, monkeypatch, named):
    folder = _hostile(made, tmp_path, named)
    monkeypatch.chdir(folder)
    before = set(sys.modules)
    with pytest.raises(UserError, match=r"plugins: |needs the plug-in") as caught:
        mmscale.load(folder)
    assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value).removeprefix(str(folder))
    assert not {name for name in set(sys.modules) - before if not name.startswith("mmscale.")}
    assert not (folder / "imports.txt").exists()


@pytest.mark.parametrize("value", [1, {"a": 1}, [None], [["evil"]], True])
def test_hostile_values_are_refused(made, tmp_path, value):
    with pytest.raises(UserError, match="plugins: expected names of modules"):
        mmscale.load(_hostile(made, tmp_path, value))


def test_a_process_that_stands_in_a_hostile_release_imports_nothing(made, tmp_path):
    folder = _hostile(made, tmp_path, ["evil"])
    done = run_module(["mmscale", "eval", "."], cwd=folder, check=False)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "needs the plug-in evil" in done.stderr
    assert not (folder / "imports.txt").exists()


def test_a_plug_in_named_for_one_thing_is_not_all_plug_ins(here, made, tmp_path):
    import_plugins(["house.shout"])
    folder = _hostile(made, tmp_path, ["house.shout", "evil"])
    with pytest.raises(UserError, match="needs the plug-in evil, "):
        mmscale.load(folder)
    assert not (folder / "imports.txt").exists()


def test_a_config_of_plain_keys_is_held_to_the_same(here, made):
    tree = read_yaml((made / "run" / "config.yaml").read_text())
    for rules in (True, False):
        with pytest.raises(UserError, match=r"theirs: needs the plug-in house\.shout"):
            config_from_tree(tree, "theirs", rules)


def _hostile(made: Path, folder: Path, named) -> Path:
    """A release whose config names what lies beside it."""
    shutil.copytree(made / "release", folder / "hostile")
    rewrite(folder / "hostile", lambda tree: tree.update(plugins=named))
    (folder / "hostile" / "evil.py").write_text(SHOUT)
    return folder / "hostile"


# The command line.

VERBS = {
    "train": ["c.yaml"], "tune": ["c.yaml"], "plan": ["c.yaml"], "model": ["c.yaml"],
    "doctor": [], "eval": ["run"], "export": ["run", "--out", "r"], "predict": ["run"],
    "verify": ["r"], "data": ["order", "c.yaml", "--steps", "0:1"],
}  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_that_opens_something_takes_plug_ins(verb):
    words = [verb, *VERBS[verb], "--plugin", "a", "--plugin", "b.c"]
    assert build_parser().parse_args(words).plugins == ["a", "b.c"]


def test_keys_lists_a_plug_ins_choices(here, capsys):
    main(["train", "--keys", "--plugin", "house.shout"])
    shown = capsys.readouterr().out
    assert "plugins (default [])" in shown and "One of: none, shout, whitespace." in shown


def test_order_and_dry_run_of_a_search_take_plug_ins(here, digits, capsys):
    main(["data", "order", str(digits), "--steps", "0:1"])
    assert "keys" in json.loads(capsys.readouterr().out.splitlines()[0]) and imports(here)
    space = "tune.space={train.optimizer.lr: {range: [1.0e-4, 1.0e-1]}}"
    main(["tune", str(digits), "--dry-run", space, "train.steps=9"])
    assert "train.optimizer.lr" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["tune", str(digits), "--dry-run", "tune.space={plugins: {choices: [[house.shout]]}}"])
    assert "remove it from the space" in capsys.readouterr().err


def test_eval_in_a_process_of_its_own(here, made):
    command = ["mmscale", "eval", str(made / "run"), "--task", "speech", "--json"]
    scores = json.loads(run_module([*command, "--plugin", "house.shout"], cwd=here).stdout)
    assert scores["speech"]["normalise"] == "shout" and len(imports(here)) == 1
    kept = json.loads((made / "run" / "scores.json").read_text())["entries"]["speech"]
    assert "--plugin house.shout" in kept["command"]


@pytest.mark.parametrize("safe", [False, True])
def test_the_current_directory_is_searched_last_and_not_if_python_must_not(here, made, safe):
    """As the script `mmscale` is started: its own folder comes first, the current one not at
    all.
    """
    (here / "elsewhere").mkdir()
    script = here / "elsewhere" / "mmscale_script.py"
    script.write_text("import sys\nfrom mmscale.cli import main\nmain()\nprint(sys.path[-1])\n")
    (here / "jinja2.py").write_text("raise RuntimeError('taken for the installed one')")
    command = [sys.executable, *(["-P"] if safe else []), str(script)]
    done = subprocess.run(
        [*command, "export", str(made / "run"), "--out", str(here / "out"), "--plugin",
         "house.shout"],
        cwd=here, capture_output=True, text=True, timeout=patience(24), check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if safe:
        assert done.returncode == 2 and "there is no module house" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(here)
    assert json.loads((here / "out" / "config.json").read_text())["config"]["plugins"] == [
        "house.shout"
    ]
    card = (here / "out" / "README.md").read_text()
    assert "`house.shout`" in card and "plugins=['house.shout']" in card


# Other processes.


def test_a_run_of_a_plug_ins_objective_stem_and_tracker(here, digits):
    """Two ranks with a loader each, its resumption, its release."""
    write_house(here, "more", MORE)
    tree = read_yaml(digits.read_text())
    tree["plugins"] = ["house.more"]
    tree["model"]["image_stem"], tree["run"]["trackers"] = "tiles", ["notes"]
    tree["data"]["sets"]["digits"]["tasks"] += [{"objective": "calm", "input": ["image"]}]
    digits.write_text(write_yaml(tree))
    command = ["mmscale", "train", str(digits), "parallel.threads=1"]
    run_module([*command, "data.workers=1", "parallel.strategy=ddp"], ranks=2, cwd=here)
    assert len(imports(here)) == 4
    run = here / "run"
    assert read_yaml((run / "config.yaml").read_text())["plugins"] == ["house.more"]
    # This process has imported all of training before it heard of the plug-in.
    main([*command[1:], f"run.dir={here}/alone"])
    alone, ranks = (_losses(folder) for folder in (here / "alone", run))
    assert [row["calm"] > 0 for row in alone] == [True, True]
    assert [row["calm"] for row in ranks] == pytest.approx([row["calm"] for row in alone], rel=1e-4)
    main([*command[1:], "train.steps=3"])
    assert len(_losses(run)) == 3
    noted = [line.split() for line in (run / "notes.txt").read_text().splitlines()]
    assert [int(step) for step, _ in noted] == [0, 1, 2]
    assert [float(loss) for _, loss in noted] == [row["calm"] for row in _losses(run)]
    export(run, here / "out")
    with without_plugins():
        with pytest.raises(UserError, match=r"needs the plug-in house\.more"):
            mmscale.load(here / "out")
        with pytest.raises(UserError, match=r"'notes' is not one of"):
            load_config(digits, ["plugins=[]"])
    assert mmscale.load(here / "out", plugins=["house.more"]).config.model.image_stem == "tiles"


def _losses(run: Path) -> list[dict[str, float]]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["losses"] for line in lines]


def test_the_planners_process_imports_it(here, digits):
    write_house(here, "more", MORE)
    config = load_config(
        digits,
        [
            "plugins=house.more",
            "model.image_stem=tiles",
            "model.vocab_size=320",
            "parallel.strategy=single",
        ],
    )
    assert dry_run(config, 1, 1, fused=False).memory["total"] > 0
    assert len(imports(here)) == 2
