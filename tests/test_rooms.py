"""The rooms of the package: what imports what, that it can be found, and that what is installed is all there."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill.cli import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
ROOMS = sorted(path.name for path in (ROOT / "distill").iterdir() if path.is_symlink())
FRONT, SUBCOMMANDS = "distill", "the commands"

#: what each room may import. The front door imports the rooms that every program needs; a command imports any room.
ALLOWED = {
    "patches": set(),
    "training": set(),
    "compression": {"training"},
    "codec": set(),
    "models": {"patches", "compression"},
    "baselines": {"patches"},
    "distillation": {"patches", "models", "baselines", "training"},
    "engines": {"patches", "models", "distillation"},
    "pruning": {"training"},
    "serving": {"pruning", "models", "patches", "codec"},
    "evaluation": {"patches", "models", "engines", "compression", FRONT},
    "mini": {"patches", "models", "baselines", "evaluation", "training"},
    FRONT: {"patches", "models", "baselines", "distillation"},
    SUBCOMMANDS: {FRONT, *ROOMS},
}


def sources() -> Iterator[tuple[str, Path]]:
    """Every module of the package, with its room."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            yield room, path
    for path in sorted((ROOT / "distill").glob("*.py")):
        yield (FRONT if path.name == "__init__.py" else SUBCOMMANDS), path


def imported(path: Path) -> Iterator[str]:
    """The modules of this package that a file imports, anywhere in it; relative imports are none."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "distill")
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "distill":
            assert node.module is not None
            # `from distill import patches` imports a room, `from distill import load` the front door
            rooms = [
                f"distill.{alias.name}" for alias in node.names if node.module == "distill" and alias.name in ROOMS
            ]
            yield from rooms or [node.module]


def room_of(module: str) -> str:
    second = (*module.split("."), "")[1]
    return second if second in ROOMS else SUBCOMMANDS if second else FRONT


def arrows() -> dict[str, set[str]]:
    """Which room imports which others."""
    found: dict[str, set[str]] = {}
    for room, path in sources():
        found.setdefault(room, set()).update({room_of(module) for module in imported(path)} - {room})
    return found


def test_arrows_run_one_way():
    for room, others in arrows().items():
        assert room in ALLOWED, f"say in ALLOWED what {room} may import"
        assert others <= ALLOWED[room], f"{room} must not import {', '.join(others - ALLOWED[room])}"


def test_no_room_imports_itself_by_way_of_others():
    after = arrows()
    for room in after:
        reached, waiting = set(), list(after[room])
        while waiting:
            other = waiting.pop()
            if other not in reached:
                reached.add(other)
                waiting += after.get(other, set())
        assert room not in reached, f"{room} is imported by what it imports"


def test_a_method_imports_no_other_method_but_a_base():
    """Which method is whose base is said in `BASES`; `Compose` and wrappers take others as arguments."""
    bases = {"pyramidkv": {"snapkv"}, "fastkv": {"snapkv"}}
    shared = {"base", "jointly", "stepwise", "checks"}
    for path in sorted((ROOT / "baselines").glob("*.py")):
        if path.name == "__init__.py":
            continue
        others = {module.split(".")[2] for module in imported(path) if module.startswith("distill.baselines.")}
        assert others <= shared | bases.get(path.stem, set()), path


def files() -> Iterator[Path]:
    for folder in (*ROOMS, "benchmarks", "tests"):
        yield from sorted((ROOT / folder).rglob("*.py"))
    yield from sorted((ROOT / "distill").glob("*.py"))


def test_every_import_of_ours_is_a_file():
    """So that tools which read files, and people, find it where it says it is."""
    missing = set()
    for path in files():
        for module in imported(path):
            place = ROOT.joinpath(*module.split("."))
            if not (place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()):
                missing.add(f"{path.relative_to(ROOT)}: {module}")
    assert not missing
    for module, _ in COMMANDS.values():
        assert (
            ROOT.joinpath(*module.split(".")).with_suffix(".py").is_file()
            or (ROOT.joinpath(*module.split(".")) / "__init__.py").is_file()
        ), module


def test_rooms_are_links_and_nothing_else_lies_beside_them():
    for room in ROOMS:
        link = ROOT / "distill" / room
        assert link.readlink() == Path("..") / room and (link / "__init__.py").is_file()
    with_code = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests", "distill"}
    assert with_code == set(ROOMS), "a room without a link in distill/"
    assert not (ROOT / "__init__.py").exists()


def test_a_script_beside_a_clone_that_is_named_distill(tmp_path):
    """An editable install is one plain path; a folder of that name without __init__.py must not be taken for it."""
    (tmp_path / "distill").mkdir()
    (tmp_path / "distill" / "README.md").write_text("a clone")
    script = tmp_path / "script.py"
    script.write_text("import distill\nprint(distill.load.__module__, distill.__file__)\n")
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.stdout.split() == ["distill.models.auto", str(ROOT / "distill" / "__init__.py")], done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Names in the wheel and in the source distribution, built without the network from a copy of the sources."""
    folder = tmp_path_factory.mktemp("built")
    kept = {"distill", "setup.py", "pyproject.toml", "README.md", "LICENSE", *ROOMS}
    for path in ROOT.iterdir():
        if path.name in kept:
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            if path.is_dir():
                shutil.copytree(path, folder / path.name, symlinks=True, ignore=ignored)
            else:
                shutil.copy(path, folder / path.name)
    code = "import setuptools.build_meta as b; b.build_wheel('out'); b.build_sdist('out')"
    (folder / "out").mkdir()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    wheel, sdist = next((folder / "out").glob("*.whl")), next((folder / "out").glob("*.tar.gz"))
    return (
        set(zipfile.ZipFile(wheel).namelist()),
        {name.partition("/")[2] for name in tarfile.open(sdist).getnames()},
    )


def packaged() -> set[str]:
    """What must be installed: every module, and the data that lies beside it or one folder below."""
    data = {".json", ".jsonl", ".safetensors", ".md", ".txt", ".html", ".css", ".js", ".yaml"}
    found = set()
    for room in ROOMS:
        for path in (ROOT / room).rglob("*"):
            if path.is_file() and (path.suffix in {".py"} | data) and "__pycache__" not in path.parts:
                found.add(f"distill/{path.relative_to(ROOT)}")
    return found | {f"distill/{path.name}" for path in (ROOT / "distill").glob("*.py")} | {"distill/py.typed"}


def test_wheel_and_source_distribution_hold_every_module_and_all_data(built):
    wheel, sdist = built
    assert packaged() <= wheel, sorted(packaged() - wheel)[:5]
    assert packaged() <= sdist, sorted(packaged() - sdist)[:5]
    assert not [name for name in wheel if name.startswith("tests/") or "__pycache__" in name]
