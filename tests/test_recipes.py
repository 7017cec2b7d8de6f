"""What the guides tell contributors to write is written to files, imported, and held to the laws of the matrix."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

import distill
from distill.models.auto import _ARCHITECTURES
from distill.patches.policy import _REGISTRY

from .baselines.test_cli import checkpoint, figures  # noqa: F401  (a fixture)
from .matrix import failures, laws  # noqa: F401  (they add their laws)
from .matrix.cells import LAWS, Case
from .matrix.methods import FEW, METHODS, Method
from .tiny import ARCHITECTURES, WINDOW, _lasting_pair, prefill, prompt, tiny

ROOT = Path(__file__).resolve().parents[1]
METHODS_GUIDE = (ROOT / "docs" / "methods.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()

#: name of each method in the guide: the heading above it, and the policy with a budget
WRITTEN = {
    "valuenorm": ("## A new method\n", lambda module, k: module.ValueNorm(k)),
    "hiddennorm": ("## A new method that drops tokens between layers\n", lambda module, k: module.HiddenNorm(k, 1)),
}


def code_below(text, heading):
    """The first block of Python behind a heading, without the indentation of a list."""
    block = re.search(r"^( *)```python\n(.*?)^ *```", text[text.index(heading) :], re.DOTALL | re.MULTILINE)
    return re.sub(rf"^{block[1]}", "", block[2], flags=re.MULTILINE)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """`written(name)`: the module that holds the method of that name, as the guide writes it."""
    folder, before = tmp_path_factory.mktemp("recipes"), dict(_REGISTRY)
    sys.path.insert(0, str(folder))

    def module(name):
        (folder / f"my_{name}.py").write_text(code_below(METHODS_GUIDE, WRITTEN[name][0]))
        return importlib.import_module(f"my_{name}")

    module.folder = folder
    yield module
    sys.path.remove(str(folder))
    _REGISTRY.clear()
    _REGISTRY.update(before)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", WRITTEN)
def test_the_methods_of_the_guide_obey_the_laws(name, law, written):
    module, make = written(name), WRITTEN[name][1]
    for implementation in LAWS[law].implementations:
        LAWS[law].holds(Case(Method(lambda k: make(module, k)), "llama", implementation))


def test_they_hold_what_they_say(written):
    found = prefill(tiny("llama", written("valuenorm").ValueNorm(12)), prompt(40)).past_key_values
    assert [layer.held for layer in found.layers] == [12] * 4
    found = prefill(tiny("llama", written("hiddennorm").HiddenNorm(12, 1)), prompt(40)).past_key_values
    assert [layer.held for layer in found.layers] == [40, 40, 13, 13]


@pytest.fixture(scope="module")
def architecture(tmp_path_factory):
    """The architecture that CONTRIBUTING adds, registered while these tests run."""
    folder, before = tmp_path_factory.mktemp("architecture"), dict(_ARCHITECTURES)
    code = code_below(CONTRIBUTING, "## Add an architecture")
    name = re.search(r'make_architecture\("(\w+)"', code)[1]
    assert name not in distill.architectures(), "the guide adds an architecture that is there: choose another one"
    (folder / "my_architecture.py").write_text(code)
    sys.path.insert(0, str(folder))
    importlib.import_module("my_architecture")
    ARCHITECTURES[name] = WINDOW
    yield name
    sys.path.remove(str(folder))
    del ARCHITECTURES[name]
    _lasting_pair.cache_clear()
    _ARCHITECTURES.clear()
    _ARCHITECTURES.update(before)


@pytest.mark.parametrize("law", LAWS)
def test_the_architecture_of_the_guide_obeys_the_laws(law, architecture):
    assert architecture in distill.architectures()
    method = METHODS[FEW[list(LAWS).index(law) % len(FEW)]]
    for implementation in LAWS[law].implementations:
        LAWS[law].holds(Case(method, architecture, implementation))


def run(*command, path=()):
    """A fresh interpreter, which has imported nothing: its exit status and what it printed."""
    environment = {"PYTHONPATH": ":".join(map(str, (ROOT, *path))), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, check=False, env=environment, cwd="/"
    )
    return done.returncode, done.stdout, done.stderr


def test_from_the_command_line(written, checkpoint):  # noqa: F811
    written("valuenorm")
    file = written.folder / "my_valuenorm.py"
    status, out, err = run("-m", "distill.cli", "methods", "valuenorm", "--import", file)
    assert status == 0 and "Keeps the entries whose values are longest." in out, err
    status, out, err = run(
        *(
            "-m",
            "distill.cli",
            "generate",
            "--import",
            file,
            "--model",
            checkpoint,
            "--question",
            "Why is it so? " * 9,
        ),
        *("--method", "valuenorm", "--budget", "20", "--device", "cpu", "--max-new-tokens", "3"),
    )
    shown = figures(out)
    assert status == 0 and shown["method"] == "valuenorm", err
    assert shown["kept share"] == f"{20 / int(shown['prompt tokens']):.1%} of the prompt's cache"
    status, _, err = run("-m", "distill.cli", "methods", "valuenorm")
    assert status == 2 and "policy: got 'valuenorm'; allowed are" in err
    status, _, err = run("-m", "distill.cli", "methods", "--import", file.with_name("nowhere.py"))
    assert status == 2 and "import: got '" in err


def test_as_an_entry_point_of_an_installed_package(written):
    written("valuenorm")
    package = written.folder / "my_package-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    entries = package / "entry_points.txt"
    entries.write_text("[distill.methods]\nvaluenorm = my_valuenorm\n")
    status, out, err = run("-m", "distill.cli", "methods", path=[written.folder])
    assert status == 0 and re.search("^valuenorm$", out, re.MULTILINE), err
    status, out, err = run(
        "-c", "import distill; print(distill.policy('valuenorm', budget=7).budget)", path=[written.folder]
    )
    assert status == 0 and out == "7\n", err
    entries.write_text("[distill.methods]\nbroken = my_nowhere\n")
    status, _, err = run("-m", "distill.cli", "methods", path=[written.folder])
    assert status == 2 and "distill.methods: got the entry point 'broken'" in err and "my_nowhere" in err


def test_a_checkpoint_says_what_to_import(written, tmp_path, checkpoint):  # noqa: F811
    model = distill.load(checkpoint, policy=written("valuenorm").ValueNorm(9))
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["policy"]
    assert saved == saved | {"name": "valuenorm", "module": "my_valuenorm", "budget": 9}
    assert "import my_valuenorm" in (tmp_path / "README.md").read_text()
    load = f"import distill; print(distill.load({str(tmp_path)!r}).config.policy.budget)"
    status, _, err = run("-c", load, path=[written.folder])
    assert status == 1 and "ValueError: policy: got 'valuenorm', a method that is not distill's own" in err
    assert "once the module 'my_valuenorm', which registers it, has been imported" in err
    status, out, err = run("-c", f"import my_valuenorm; {load}", path=[written.folder])
    assert status == 0 and out == "9\n", err
    remote = (
        "from transformers import AutoModelForCausalLM as A; "
        f"print(A.from_pretrained({str(tmp_path)!r}, trust_remote_code=True).config.policy.budget)"
    )
    status, out, err = run("-c", remote, path=[written.folder])
    assert status == 0 and out == "9\n", err
