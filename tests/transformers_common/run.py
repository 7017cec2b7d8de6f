"""Runs Transformers' own common model tests on the distill classes, with the policy off.

The tests are not in the wheel, but in the source distribution of the same version, which this downloads once. That is
why they are not part of `pytest tests`, which is offline. Arguments are handed to pytest. A test that fails is run
again on the stock class, and is no failure of ours if it fails there too; `--stock` runs all on the stock classes.

    python tests/transformers_common/run.py [--stock] [-k EXPRESSION ...]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TESTS = HERE / "common_models.py"
CACHE = ROOT / ".cache"
PACKAGE = "transformers_tests"

# Modules that test_modeling_common.py and test_configuration_common.py import and the source distribution lacks. The
# first two define tests that we therefore do not run. The third is a table of config fields with other than default
# values; ours is shorter than the original.
STAND_INS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": (
        "config_common_kwargs = {\n"
        '    "chunk_size_feed_forward": 5,\n'
        '    "dtype": "float16",\n'
        '    "num_labels": 7,\n'
        '    "output_hidden_states": True,\n'
        '    "return_dict": False,\n'
        "}\n"
    ),
}


def fetch(release: str) -> Path:
    """The source distribution of that Transformers release, from the cache if it is there."""
    archive = CACHE / f"transformers-{release}.tar.gz"
    if not archive.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        command += ["--no-build-isolation", "--dest", str(CACHE), f"transformers=={release}"]
        subprocess.run(command, check=True)
    return archive


def unpack(archive: Path) -> Path:
    """A folder from which the tests of a source distribution can be imported as the package `PACKAGE`."""
    name = archive.name.removesuffix(".tar.gz")
    files = {"__init__.py": b""}
    with tarfile.open(archive) as tar:
        for member in tar:
            content = tar.extractfile(member) if member.name.startswith(f"{name}/tests/") else None
            if content is not None:
                files[member.name.removeprefix(f"{name}/tests/")] = content.read()
    for path, text in STAND_INS.items():
        files.setdefault(f"{Path(path).parent}/__init__.py", b"")
        files.setdefault(path, text.encode())
    for path, content in files.items():
        target = CACHE / name / PACKAGE / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return CACHE / name


def run(release: str, arguments: list[str], stock: bool) -> tuple[int, list[tuple[str, str]]]:
    """Runs the tests: pytest's exit status, and class and name of each test that failed."""
    environment = os.environ | {
        "DISTILL_COMMON_STOCK": "1" if stock else "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(unpack(fetch(release))), os.environ.get("PYTHONPATH")])),
        "TOKENIZERS_PARALLELISM": "false",
    }
    report = CACHE / f"common-{'stock' if stock else 'distill'}.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--noconftest", "-p", "no:cacheprovider"]
    # the repository's own pytest settings are for its own tests: strict markers, warnings as errors
    command += ["-o", "addopts=--import-mode=importlib", "-o", "filterwarnings=ignore", f"--junit-xml={report}"]
    code = subprocess.run([*command, *arguments], cwd=ROOT, env=environment).returncode
    cases = ElementTree.parse(report).getroot().iter("testcase") if code in (0, 1) else []
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    return code, list(dict.fromkeys((case.attrib["classname"].split(".")[-1], case.attrib["name"]) for case in failed))


def main(arguments: list[str]) -> int:
    """Exit status: 0 if no test failed but those that fail on the stock class too."""
    release, stock = version("transformers"), "--stock" in arguments
    rest = [argument for argument in arguments if argument != "--stock"]
    code, failed = run(release, [str(TESTS), *rest], stock)
    if failed and not stock:
        print("\nThe same tests on the stock classes:", flush=True)
        same = [f"{TESTS}::{test_class.removeprefix('Distill')}::{name}" for test_class, name in failed]
        _, fails_too = run(release, same, stock=True)
        ours = [pair for pair in failed if (pair[0].removeprefix("Distill"), pair[1]) not in fails_too]
        code = 1 if ours else 0
        for test_class, name in failed:
            print(f"{'FAILED' if (test_class, name) in ours else 'fails with stock too:'} {test_class}::{name}")
    if code == 0:  # pytest's own closing line leaves out a count of none
        print(f"Transformers {release}, {'stock' if stock else 'distill'} classes: 0 failed")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
