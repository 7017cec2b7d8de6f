"""lm-evaluation-harness (`lm_eval`) on distill models.

    python -m distill.evaluation.harness run --model distill --tasks niah_single_1 --model_args '{"pretrained": "PATH",
        "policy": {"name": "promptdistill", "selection_layers": [13], "n_topks": [1024]}}'

starts the harness with our models known to it (it has no other way to find a plugin's). In Python, `DistillLM` can be
used wherever an `HFLM` can: `lm_eval.simple_evaluate(model=DistillLM("PATH", policy=...), tasks=[...])`.

The policy applies to generation only. Log-likelihood requests are answered by the exactly stock model, with a warning:
they need the logits of every token, and a model that drops tokens has fewer. The harness would take other rows for the
ones it asks for, and report plausible, wrong numbers. A plain `HFLM` does not know of this; that is why the launcher
refuses other models than "distill".
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import Any

import distill
from distill.models.base import CONFIGURED
from distill.patches.policy import as_policy

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise ImportError("distill.evaluation.harness needs lm-evaluation-harness: pip install 'lm_eval[hf]'") from error

logger = logging.getLogger(__name__)

# sub-commands of the harness that load no model
WITHOUT_MODEL = ("ls", "validate")
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
        policy: a `Policy`, its name, its JSON form, or None for the stock model. Default: the one that the checkpoint
            or the model has, which is none for a stock checkpoint.
        kwargs: as for `HFLM`.

    Raises:
        ValueError: an unknown policy or one that does not fit the model, a model that is not distill's, or an option
            of `HFLM` that this class does not support.
    """

    def __init__(self, pretrained: Any, policy: Any = CONFIGURED, **kwargs: Any) -> None:
        self.policy = policy if policy is CONFIGURED else as_policy(policy)
        self.warned = False
        super().__init__(pretrained, **kwargs)
        if not hasattr(self.model, "using"):
            raise ValueError(
                f"pretrained: got a {type(self.model).__name__}; allowed are folders, Hub names and models from "
                "distill.load"
            )
        if self.policy is CONFIGURED:
            self.policy = as_policy(self.model.config.policy)
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
        # a policy that was saved with the checkpoint is only read if it is wanted
        self._model = distill.load(pretrained, policy=CONFIGURED if self.policy is CONFIGURED else None, **given)

    def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
        with self.model.using(self.policy):
            return super()._model_generate(*args, **kwargs)

    def _model_call(self, *args: Any, **kwargs: Any) -> Any:
        with self.model.using(None):
            return super()._model_call(*args, **kwargs)

    def _loglikelihood_tokens(self, *args: Any, **kwargs: Any) -> Any:
        if self.policy is not None and not self.warned:
            self.warned = True
            logger.warning(
                "log-likelihoods are those of the stock model: the policy %r applies to generation only",
                self.policy.name,
            )
        return super()._loglikelihood_tokens(*args, **kwargs)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes into its results about the model; also says what the policy applied to."""
        policy = None if self.policy is None else self.policy.to_dict()
        return super().get_model_info() | {"policy": policy, "policy_applies_to": "generation"}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the harness's own command line with our models known to it.

    Args:
        argv: its arguments; None takes this process's.

    Raises:
        ValueError: another --model than "distill" (or none, which means "hf"): the log-likelihoods of any other class
            are wrong under a policy.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # read as the harness reads it: all spellings, and the last one counts
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model", "-M")
    model = parser.parse_known_args(arguments)[0].model
    loads_none = not arguments or arguments[0] in WITHOUT_MODEL or {"-h", "--help"} & set(arguments)
    if model != "distill" and not loads_none:
        raise ValueError(f"--model: got {model!r}; allowed is 'distill'")
    sys.argv = ["lm_eval", *arguments]
    cli_evaluate()


if __name__ == "__main__":
    try:
        main()
    except ValueError as problem:
        sys.exit(f"distill.evaluation.harness: {problem}")
