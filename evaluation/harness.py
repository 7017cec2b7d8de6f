"""lm-evaluation-harness (`lm_eval`) on distill models.

    python -m distill.evaluation.harness run --model distill --tasks niah_single_1 --model_args '{"pretrained": "PATH",
        "policy": {"name": "promptdistill", "selection_layers": [13], "n_topks": [1024]}}'

starts the harness with our models known to it (it has no other way to find a plugin's). In Python, `DistillLM` goes
where an `HFLM` goes: `lm_eval.simple_evaluate(model=DistillLM("PATH", policy=...), tasks=[...])`.

The policy applies to generation only. Log-likelihood requests are answered by the exactly stock model: with tokens
dropped there are fewer logits than inputs, the harness would slice an empty range and score every choice 0 without an
error.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import Any

import distill
from distill.patches.policy import as_policy

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise ImportError("distill.evaluation.harness needs lm-evaluation-harness: pip install 'lm_eval[hf]'") from error

# what HFLM can do with a model but this class cannot
UNSUPPORTED = (
    "trust_remote_code",
    "parallelize",
    "tp_plan",
    "max_memory_per_gpu",
    "max_cpu_memory",
    "peft",
    "delta",
    "autogptq",
    "gptqmodel",
    "gguf_file",
)


@register_model("distill")
class DistillLM(HFLM):
    """An `HFLM` whose generation runs under a policy.

    Args:
        pretrained: folder or Hub name, or a model from `distill.load`.
        policy: a `Policy`, its name, its JSON form, or None for the stock model.
        kwargs: as for `HFLM`.

    Raises:
        ValueError: an unknown policy or one that does not fit the model, a model that is not distill's, or an option
            of `HFLM` that this class does not support.
    """

    def __init__(self, pretrained: Any, policy: Any = None, **kwargs: Any) -> None:
        self.policy = as_policy(policy)
        super().__init__(pretrained, **kwargs)
        if not hasattr(self.model, "using"):
            raise ValueError(
                f"pretrained: got a {type(self.model).__name__}; allowed are folders, Hub names and models from "
                "distill.load"
            )
        if self.policy is not None:
            self.policy.check(self.model.config)

    def _create_model(self, pretrained: str, **options: Any) -> None:
        for name in UNSUPPORTED:
            value = options.pop(name, None)
            if value:
                raise ValueError(f"{name}: got {value!r}; allowed is only leaving it out: distill does not support it")
        # where HFLM itself would offload to; it is always passed and only used with the options above
        options.pop("offload_folder", None)
        options.pop("gpus", None)
        given = {name: value for name, value in options.items() if value not in (None, "")}
        self._model = distill.load(pretrained, policy=None, **given)

    def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
        with self.model.using(self.policy):
            return super()._model_generate(*args, **kwargs)

    def _model_call(self, *args: Any, **kwargs: Any) -> Any:
        with self.model.using(None):
            return super()._model_call(*args, **kwargs)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the harness's own command line with our models known to it.

    Raises:
        ValueError: another --model than "distill" that would load a model whose log-likelihoods the policy falsifies.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    names = [b for a, b in itertools.pairwise(arguments) if a in ("--model", "-M")]
    names += [a.partition("=")[2] for a in arguments if a.startswith("--model=")]
    if (names or "run" in arguments[:1]) and names[-1:] != ["distill"]:
        raise ValueError(f"--model: got {names[-1] if names else 'none'!r}; allowed is 'distill'")
    sys.argv = ["lm_eval", *arguments]
    cli_evaluate()


if __name__ == "__main__":
    try:
        main()
    except ValueError as problem:
        sys.exit(f"distill.evaluation.harness: {problem}")
