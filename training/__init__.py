"""What every training run of this package shares: a folder that belongs to one run, checkpoints, a log and a curve.

A recipe subclasses `Training` and says what one step is and what has to be saved. Nothing here knows what is trained.
"""

from __future__ import annotations

from distill.training.curve import Panel, plot
from distill.training.folder import RunFolder, write_whole
from distill.training.loop import Training, processes

__all__ = ["Panel", "RunFolder", "Training", "plot", "processes", "write_whole"]
