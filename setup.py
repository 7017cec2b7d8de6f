"""The package is `distill/`, which holds a link to each top-level folder ("room")."""

from setuptools import find_packages, setup

# package_dir makes an editable install one plain path, which a folder named distill beside a script cannot shadow
setup(packages=find_packages(include=["distill", "distill.*"]), package_dir={"": "."})
