"""Scorers: pure functions from a prediction and a reference to a score. No files, no models, no network.

`tests/evaluation/test_metrics.py` holds them against outputs of the official scorers.
"""
