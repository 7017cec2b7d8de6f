"""The package is `distill/`, which holds a link to each top-level folder ("room")."""

from setuptools import find_packages, setup

setup(packages=find_packages(include=["distill", "distill.*"]))
