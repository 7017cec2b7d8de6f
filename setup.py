"""Maps the top-level folders ("rooms") of this repository into one package, `distill`."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
ROOMS = [
    "patches",
    "models",
    "baselines",
    "evaluation",
    "pruning",
    "mini",
    "distillation",
    "compression",
    "codec",
    "serving",
]
# data of a room lies beside its code or one folder below it (a model, a set of prompts)
ENDINGS = ["json", "jsonl", "safetensors", "md", "txt", "html", "css", "js"]
DATA = ["py.typed", *(f"{folder}*.{ending}" for folder in ("", "*/") for ending in ENDINGS)]

packages = ["distill"]
package_dir = {"distill": "distill"}
for room in ROOMS:
    if not (ROOT / room / "__init__.py").exists():
        continue
    packages += [f"distill.{room}"] + [f"distill.{room}.{sub}" for sub in find_packages(str(ROOT / room))]
    package_dir[f"distill.{room}"] = room

setup(
    packages=packages,
    package_dir=package_dir,
    package_data={"": DATA},
)
