"""Kinds by name: named without an import, found by their file, never replaced."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from mmscale import registry
from mmscale.errors import UserError
from mmscale.registry import OBJECTIVES, OPTIMIZERS, STRATEGIES, Registry

REGISTRIES = {name: value for name, value in vars(registry).items() if isinstance(value, Registry)}
FILES = {
    "__init__": "",
    "_shared": "raise RuntimeError('this file is no kind')",
    "a": "class A: pass\nLETTERS.register('a', A)",
    "b": "class B: pass\nLETTERS.register('b', B())",
    "c": "class C: pass\nLETTERS.register('sea', C)",
    "d": "",
}
# What kinds must carry.
WHOLE = {
    OBJECTIVES: {"name": "made"},
    OPTIMIZERS: {"card": "Made", "moments": (), "elementwise": True},
    STRATEGIES: {"name": "made"},
}


@pytest.fixture
def letters(tmp_path, monkeypatch):
    """The registry of a package with two kinds, ``a`` and ``b``, and two files that are wrong."""
    package = tmp_path / "made" / "letters"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    for name, text in FILES.items():
        header = "from made import LETTERS\n" if text else ""
        (package / f"{name}.py").write_text(header + text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "__file__", str(package.parent / "registry.py"))
    import made

    made.LETTERS = Registry("letter", "made.letters")
    yield made.LETTERS
    for name in [name for name in sys.modules if name.partition(".")[0] == "made"]:
        del sys.modules[name]


def test_names_cost_no_import_of_torch():
    """As `mmscale train --keys` needs them, and every check of a config."""
    code = (
        "import sys; from mmscale.registry import *\n"
        "assert 'next_token' in OBJECTIVES.names() and 'cnn' in IMAGE_STEMS.names()\n"
        "print(*(name for name in sys.modules if name.startswith(('torch', 'mmscale.data'))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_kind_is_imported_when_it_is_first_used(letters):
    assert letters.names() == ("a", "b", "c", "d")
    assert "made.letters.a" not in sys.modules
    assert letters["a"].__name__ == "A" and letters["a"] is letters["a"]
    assert "made.letters.b" not in sys.modules


def test_an_unknown_kind_is_an_assertion_that_lists_the_names(letters):
    with pytest.raises(AssertionError, match="no letter is named 'z': a, b, c, d"):
        letters["z"]
    with pytest.raises(AssertionError, match="no letter is named '_shared'"):
        letters["_shared"]


@pytest.mark.parametrize("name", ["c", "d"])
def test_a_file_that_registers_another_name_than_its_own_is_noticed(letters, name):
    for _ in range(2):  # the second time it is imported already
        with pytest.raises(AssertionError, match=f"made.letters.{name}: does not register the let"):
            letters[name]
        with pytest.raises(AssertionError, match="does not register"):
            letters.all()


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_plug_in_replaces_no_kind_of_ours(letters, name, used):
    ours = letters[name] if used else None

    class Theirs:
        pass

    for theirs in (Theirs, Theirs(), lambda: None):
        with pytest.raises(UserError, match=f"letter '{name}' exists already; give yours another"):
            letters.register(name, theirs)
    assert not used or letters[name] is ours
    assert not isinstance(letters[name], Theirs)


def test_a_plug_in_replaces_no_other_plug_ins_kind(letters):
    first, second = object(), object()
    letters.register("x", first)
    letters.register("x", first)  # a module that is imported twice under one name
    with pytest.raises(UserError, match="letter 'x' exists already"):
        letters.register("x", second)
    assert letters["x"] is first and letters.names() == ("a", "b", "c", "d", "x")


@pytest.mark.parametrize("name", REGISTRIES)
def test_every_file_of_ours_is_a_kind_of_its_name(name):
    ours = REGISTRIES[name]
    assert ours.names(), f"no file lies in {ours.package}"
    assert ours.all().keys() == set(ours.names())


@pytest.mark.parametrize(
    ("of", "part"), [(of, part) for of, parts in WHOLE.items() for part in parts]
)
def test_a_kind_that_lacks_a_part_is_refused(of, part):
    """An optimiser without a line for the card trained, and failed at its export."""
    lacking = {name: value for name, value in WHOLE[of].items() if name != part}
    with pytest.raises(UserError, match=f"'made': has no '{part}'; set it in its class"):
        of.register("made", SimpleNamespace(**lacking))
    assert "made" not in of.names()
    of.register("made", SimpleNamespace(**WHOLE[of]))
    of.forget("made")


def test_a_kind_has_one_name():
    with pytest.raises(UserError, match="'made': its class has name = 'maid'; write the same"):
        OBJECTIVES.register("made", SimpleNamespace(name="maid"))
