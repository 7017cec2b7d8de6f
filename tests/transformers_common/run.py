"""Runs Transformers' own common model tests on the distill classes, with the policy off.

The tests are not in the wheel, but in the source distribution of the same version, which this downloads once. That is
why they are not part of `pytest tests`, which is offline. Arguments are handed to pytest; `--stock` runs the same
tests on the stock classes instead, which tells whether a failure is ours.

    python tests/transformers_common/run.py [--stock] [-k EXPRESSION ...]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
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


def main(arguments: list[str]) -> int:
    release = version("transformers")
    folder = unpack(fetch(release))
    stock = "--stock" in arguments
    environment = os.environ | {
        "DISTILL_COMMON_STOCK": "1" if stock else "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])),
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--noconftest", "-p", "no:cacheprovider"]
    # the repository's own pytest settings are for its own tests: strict markers, warnings as errors
    command += ["-o", "addopts=--import-mode=importlib", "-o", "filterwarnings=ignore"]
    command += [str(HERE / "common_models.py"), *(a for a in arguments if a != "--stock")]
    code = subprocess.run(command, cwd=ROOT, env=environment).returncode
    if code == 0:  # pytest's own closing line leaves out a count of none
        print(f"Transformers {release}, {'stock' if stock else 'distill'} classes: 0 failed")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
