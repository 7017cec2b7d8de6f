"""A finished run's figures for TensorBoard, Weights & Biases, or what else Accelerate knows, where it is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def check_trackers(names: Sequence[str]) -> None:
    """Raises a `ValueError` for a tracker that is not installed."""
    from accelerate.tracking import get_available_trackers

    known = sorted(str(tracker.value) for tracker in get_available_trackers())
    for name in names:
        if name not in known:
            raise ValueError(
                f"report_to: got {name!r}; allowed are what is installed of the trackers that Accelerate knows: "
                f"{', '.join(known) or 'none (pip install tensorboard)'}"
            )


def track(summary: Mapping[str, Any], folder: Path, names: Sequence[str]) -> None:
    """Hands over what was measured before and after, and the losses of the recovery, step by step.

    Args:
        summary: of a run, as in `summary.json`.
        folder: TensorBoard's files go into its folder `shrink`.
        names: of trackers.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(log_with=list(names), project_dir=str(folder))
    settings = {
        name: value if isinstance(value, str | int | float | bool) else str(value)
        for name, value in summary["options"].items()
    }
    accelerator.init_trackers("shrink", settings)

    def weights(side: str) -> dict[str, float]:
        figures = {"file_bytes": summary["bytes"][side], "perplexity": summary["quality"][side]["token"]}
        return {f"weights/{name}": float(value) for name, value in (figures | summary["weights"][side]).items()}

    last = 0  # some trackers drop what comes for an earlier step
    accelerator.log(weights("before"), step=last)
    for receipt in summary["receipts"]:
        for step, loss in receipt["details"].get("losses", []):
            last = max(last, step)
            accelerator.log({f"{receipt['transform']}/loss": loss}, step=step)
    accelerator.log(weights("after"), step=last + 1)
    accelerator.end_training()
