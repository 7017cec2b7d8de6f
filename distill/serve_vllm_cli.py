"""`distill serve-vllm`: vLLM's OpenAI-compatible server, with a policy on the model."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys

from transformers import AutoConfig

from distill.engines import cache_arguments, engine_arguments
from distill.engines.prefix import Caches
from distill.engines.settings import check_version, policy_of

EXAMPLES = """\
examples:
  distill serve-vllm MODEL --policy tuned/tuned.json --port 8000
      MODEL is a stock checkpoint; the policy is what `distill tune MODEL -o tuned` wrote
  distill serve-vllm SAVED
      a checkpoint that distill saved has its policy with it; plain `vllm serve SAVED` does the same
  distill serve-vllm MODEL --policy tuned.json --vllm --max-model-len 8192 --dtype float32
      what stands behind --vllm is handed on to `vllm serve`
  distill serve-vllm MODEL --caches caches
      a request may begin with what `distill cache make MODEL ... -o caches` wrote: {"distill_cache": "NAME"}
  curl localhost:8000/v1/completions -H 'Content-Type: application/json' \\
       -d '{"model": "MODEL", "prompt": "A long prompt", "vllm_xargs": {"distill": "off"}}'
      one request without the policy, exactly the stock model; {"question_tokens": 12} says how many tokens ask

GET /metrics is vLLM's own, GET /distill/metrics says what the policy saved. docs/engines.md says what is refused.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `distill serve-vllm`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("model", help="folder or Hub name of a checkpoint, stock or saved by distill")
    parser.add_argument("--policy", help="JSON file or name of a policy; default: the one saved with the checkpoint")
    parser.add_argument(
        "--caches",
        metavar="FOLDER",
        help="folder of `distill cache make`: requests may begin with a cache in it; not together with a policy",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default 8000)")
    parser.add_argument(
        "--vllm",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="ARGUMENTS",
        help="last: all that follows are arguments of `vllm serve`",
    )


def command(args: argparse.Namespace) -> list[str]:
    """The arguments of vLLM's own command.

    Raises:
        ValueError: a model or a policy that vLLM cannot honour.
    """
    words = ["--model", args.model, "--host", args.host, "--port", str(args.port)]
    if args.caches is not None:
        words += cache_words(args)
    elif args.policy is not None:
        overrides = engine_arguments(args.model, args.policy)["hf_overrides"]
        config = AutoConfig.from_pretrained(args.model)
        config.policy = overrides["policy"]
        policy_of(config)
        words += ["--hf-overrides", json.dumps(overrides)]
    else:
        policy_of(AutoConfig.from_pretrained(args.model))
    return [*words, *args.vllm]


def cache_words(args: argparse.Namespace) -> list[str]:
    """The arguments of vLLM's command that give it saved caches.

    Raises:
        ValueError: no such folder, or a policy beside it.
    """
    config = AutoConfig.from_pretrained(args.model)
    if args.policy is not None or policy_of(config) is not None:
        raise ValueError("caches: got a folder for a model under a policy; allowed is a model without one")
    Caches(args.caches, config)
    arguments = cache_arguments(args.caches)
    return ["--kv-transfer-config", json.dumps(arguments["kv_transfer_config"]), "--no-enable-prefix-caching"]


def run(args: argparse.Namespace) -> int:
    """Becomes vLLM's server.

    Raises:
        ValueError: vLLM is not installed, or another version; a model or a policy that it cannot honour.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ValueError("vllm: got none; allowed is an installed one: pip install 'distill-llm[vllm]'")
    from vllm import __version__ as found

    check_version(found)
    words = command(args)
    names = os.environ.get("VLLM_PLUGINS")
    # unset, vLLM loads the plugin but not its route
    os.environ["VLLM_PLUGINS"] = (
        "distill" if names is None else ",".join(dict.fromkeys([*names.split(","), "distill"]))
    )
    # what `vllm serve` runs; that command itself asks for a package called vllm, which its wheel for the CPU is not
    os.execv(sys.executable, [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words])
