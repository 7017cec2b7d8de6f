"""Evaluation that can be trusted: long-context benchmarks with the official prompts, truncation and scores.

Predicting and scoring are two steps. `distill.evaluation.predict` runs a model and writes result files;
`distill.evaluation.scoring` reads those files and needs no model. `distill eval --help` explains the command and
docs/evaluation.md the protocols.
"""
