"""Settings of PromptDistill that somebody measured on a model, each with its source; for other models there are none.

Which layer finds what an answer needs cannot be guessed. `suggest` looks a model up here by the shape of its config,
which a fine-tuned model shares with the one it comes from.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from distill.models.promptdistill import PromptDistill
from distill.patches.policy import Policy


@dataclass(frozen=True)
class Profile:
    """What is known about one model.

    Attributes:
        model: its name.
        shape: fields of its config, by which it is recognised.
        policy: the settings.
        source: who measured what, by which command, on how many prompts and when.
        too_early: the first layer at which the paper's scores were seen to keep what answers need; None if nobody
            looked.
    """

    model: str
    shape: dict[str, Any]
    policy: Policy
    source: str
    too_early: int | None = None

    def fits(self, config: Any) -> bool:
        """Whether a model of this config has the shape."""
        shape = {name: getattr(config, name, None) for name in self.shape}
        return shape | {"model_type": config.model_type.removeprefix("distill_")} == self.shape


#: what finds in early layers what a question asks for: see docs/real-models.md
_SEEN: dict[str, Any] = {
    "scoring": "max",
    "pooling": "max",
    "tail": 8,
    "observation_window": 16,
    "question": True,
    "beside": True,
    "sinks": 4,
}

PROFILES = (
    Profile(
        "SmolLM2-135M-Instruct",
        {"model_type": "llama", "num_hidden_layers": 30, "hidden_size": 576, "vocab_size": 49152},
        PromptDistill([8], [1 / 8], aggregate=2, pooling_kernel=15, **_SEEN),
        "25 of 27 answers of the stock model kept (interval 0.77 to 0.98), 2.5 times fewer tokens times layers; "
        "`python benchmarks/real.py MODEL --samples 64`, prompts of 1,000 tokens, 2026-11-26",
        too_early=21,
    ),
    Profile(
        "Qwen2.5-Coder-1.5B-Instruct",
        {"model_type": "qwen2", "num_hidden_layers": 28, "hidden_size": 1536, "vocab_size": 151936},
        PromptDistill([8], [1 / 8], pooling_kernel=31, **_SEEN),
        "32 of 32 answers of the stock model kept (interval 0.89 to 1.00), 2.4 times fewer tokens times layers; "
        "`python benchmarks/real.py MODEL --dtype bfloat16 --first 100 --samples 36`, prompts of 1,000 tokens, "
        "2026-11-26",
        too_early=16,
    ),
    Profile(
        "Llama-3.1-8B-Instruct",
        {"model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096, "vocab_size": 128256},
        PromptDistill([13], [1024], cache_truncation_end=1),
        "the paper's authors, in the commands of https://github.com/declare-lab/PromptDistill; not measured by us",
    ),
)


@dataclass(frozen=True)
class Suggestion:
    """What `suggest` found.

    Attributes:
        policy: the settings; None if there are none for this model.
        source: where they come from, or what to do instead.
    """

    policy: Policy | None
    source: str

    def __str__(self) -> str:
        return self.source if self.policy is None else f"{self.policy}\n({self.source})"


def suggest(model: Any) -> Suggestion:
    """Settings that were measured on a model of this shape.

    Args:
        model: a model, its config, or the folder or Hub name of a checkpoint.
    Returns:
        the settings and where they come from; without settings if nobody has measured any.
    """
    profile = _profile(_config(model))
    if profile is None:
        return Suggestion(None, "no profile of this model; `distill tune MODEL -o FOLDER` measures what it needs")
    return Suggestion(profile.policy, f"{profile.model}: {profile.source}")


def _config(model: Any) -> Any:
    if not isinstance(model, str):
        return getattr(model, "config", model)
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(model)


def _profile(config: Any) -> Profile | None:
    return next((profile for profile in PROFILES if profile.fits(config)), None)


_warned: set[tuple[str, Policy]] = set()


def warn_if_too_early(config: Any) -> None:
    """Warns, once for each policy, where the config's policy selects by the paper's scores at a layer known as bad."""
    policy, profile = config.policy, _profile(config)
    if not isinstance(policy, PromptDistill) or profile is None or profile.too_early is None or policy.adaptive:
        return
    first = policy.layers_of(config)[0]
    if policy.scoring != "raw" or first >= profile.too_early or (profile.model, policy) in _warned:
        return
    _warned.add((profile.model, policy))
    warnings.warn(
        f"selection_layers: layer {first} of {profile.model} does not find what answers need with scoring='raw'; "
        f"layer {profile.too_early} does, and other scores do earlier (see distill.suggest)",
        stacklevel=3,
    )
