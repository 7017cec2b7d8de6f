"""Evaluation that can be trusted: long-context benchmarks with the official prompts, truncation and scores.

Predicting and scoring are apart: `distill.evaluation.predict` writes result files, `distill.evaluation.scoring` reads
them and needs no model. `distill eval --help` explains the command; docs/evaluation.md the protocols.
"""
