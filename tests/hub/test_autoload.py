"""`import mmscale` registers our classes with `transformers`; other programs are never touched."""

import os
import subprocess
import sys
import textwrap
import tomllib

import pytest
from conftest import ROOT
from small_run import save_run, small_config, write_shards

from mmscale.release.export import export

pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    write_shards(folder / "shards", count=4)
    export(save_run(small_config(folder / "run", folder / "shards")), folder / "release")
    return folder / "release"


def run_python(code, folder, *path):
    """Run ``code`` in a process of its own, with ``path`` before what is installed."""
    # An older checkout that was installed in place may have left an entry point of torch behind.
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, path or [ROOT]))
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=folder.parent,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


OPEN = """
from transformers import AutoModel, AutoProcessor
{late}
import sys
model, processor = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModel, AutoProcessor))
print(type(model).__name__, model(**processor(text="one", embed=True)).pooler_output.shape)
print([type(finder) for finder in sys.meta_path if "mmscale" in type(finder).__module__])
"""


@pytest.mark.parametrize("early, late", [("import mmscale", ""), ("", "import mmscale")])
def test_importing_mmscale_before_or_after_transformers_is_enough(release, early, late):
    """And the finder that waited for the auto modules is gone when it has seen the third."""
    lines = run_python(early + OPEN.format(late=late), release).splitlines()
    assert lines == ["MmscaleModel torch.Size([1, 16])", "[]"]


@pytest.mark.parametrize("kind", ["Config", "Model", "Processor"])
@pytest.mark.parametrize(
    "code",
    [
        "import mmscale; from transformers import Auto{0}",
        "from transformers import Auto{0}, mmscale",
    ],
)
def test_each_class_is_registered_alone(release, kind, code):
    code = code.replace(", mmscale", "; import mmscale").format(kind)
    code += f"; import sys; print(type(Auto{kind}.from_pretrained(sys.argv[1])).__name__)"
    assert run_python(code, release).strip() == f"Mmscale{kind}"


def test_importing_mmscale_imports_neither_torch_nor_transformers(release):
    code = (
        "import sys, mmscale; print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert run_python(code, release).strip() == "[]"


def test_without_the_import_the_error_names_mmscale_and_the_release_says_what_to_do(release):
    code = """
        import sys
        from transformers import AutoModel
        try:
            AutoModel.from_pretrained(sys.argv[1])
        except ValueError as error:
            print(str(error).splitlines()[0])
        print("mmscale" in sys.modules)
    """
    error, imported = run_python(code, release).splitlines()
    assert "model type `mmscale`" in error and imported == "False"
    for file in ("config.json", "README.md"):
        assert "`import mmscale`" in (release / file).read_text()


def test_a_checkout_that_was_moved_away_does_not_disturb_torch(release, tmp_path):
    """Its metadata stays in the environment, with every entry point that pyproject.toml declares,
    and the package cannot be imported.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    metadata = tmp_path / "mmscale_moved-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mmscale-moved\nVersion: 1\n")
    groups = {"console_scripts": project["scripts"], **project.get("entry-points", {})}
    lines = [
        line
        for group, entries in groups.items()
        for line in (f"[{group}]", *(f"{name} = {target}" for name, target in entries.items()))
    ]
    moved = "\n".join(lines).replace("mmscale.", "mmscale_moved.")
    (metadata / "entry_points.txt").write_text(moved)
    code = """
        import os
        os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "1"
        import torch
        print(torch.ones(1).item())
    """
    assert run_python(code, release, tmp_path).strip() == "1.0"


@pytest.mark.parametrize("order", ["import mmscale, {0}", "import {0}, mmscale"])
def test_another_version_of_transformers_is_imported_as_if_we_were_not_there(
    release, tmp_path, order
):
    """One that lacks what our classes need: a program that only wants that version gets one
    warning.
    """
    auto = tmp_path / "transformers" / "models" / "auto"
    auto.mkdir(parents=True)
    for folder in (auto, auto.parent, auto.parent.parent):
        (folder / "__init__.py").touch()
    (auto.parent.parent / "configuration_utils.py").write_text("class PretrainedConfig: pass")
    for name in ("configuration", "modeling", "processing"):
        (auto / f"{name}_auto.py").write_text("whole = 1")
    code = f"""
import warnings
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as caught:
    {order.format("transformers.models.auto.modeling_auto")}
    import transformers.models.auto.configuration_auto, transformers.models.auto.processing_auto
    assert transformers.models.auto.modeling_auto.whole
print(*[entry.message for entry in caught if "mmscale" in str(entry.message)], sep="\\n")
"""
    (line,) = run_python(code, release, tmp_path, ROOT).splitlines()
    assert "cannot open its releases" in line and "PreTrainedConfig" in line
