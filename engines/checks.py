"""What vLLM offers and a policy cannot be honoured with: each is refused when the model is loaded, by its own message.

Needs no vLLM: the functions read attributes.
"""

from __future__ import annotations

from typing import Any

from distill.engines.prefix import CACHE
from distill.engines.settings import BLOCKS, SUPPORTED, request_policy
from distill.models import PromptDistill
from distill.patches.checks import check_choice, shown


def refuse(name: str, got: Any, allowed: str) -> None:
    """Raises the `ValueError` of something that is not allowed under a policy."""
    raise ValueError(f"{name}: got {shown(got)}; allowed under a policy is {allowed}")


def check_engine(config: Any, policy: PromptDistill) -> None:
    """Raises a `ValueError` if an engine is set up with something that a policy cannot be honoured with.

    Args:
        config: a `vllm.config.VllmConfig`, before vLLM has filled in what depends on the platform.
        policy: the model's policy.
    """
    cache, parallel, scheduler, model = (
        config.cache_config,
        config.parallel_config,
        config.scheduler_config,
        config.model_config,
    )
    if config.device_config.device_type != "cpu":
        refuse("device", config.device_config.device_type, "'cpu', the only one that is tested")
    if model.runner_type != "generate":
        refuse("runner", model.runner_type, "'generate': pooling needs the rows that were dropped")
    if cache.enable_prefix_caching:
        refuse(
            "enable_prefix_caching",
            True,
            "False: later layers hold what one prompt's question chose, which is no prefix of another",
        )
    if config.lora_config is not None:
        refuse("enable_lora", True, "False: adapters count the rows of a step, of which later layers have fewer")
    if config.speculative_config is not None:
        refuse("speculative_config", config.speculative_config.method, "none: draft tokens are taken back")
    if parallel.pipeline_parallel_size > 1:
        refuse(
            "pipeline_parallel_size",
            parallel.pipeline_parallel_size,
            "1: rows that wait and go on stay in one process",
        )
    if parallel.tensor_parallel_size > 1:
        refuse(
            "tensor_parallel_size", parallel.tensor_parallel_size, "1: scores would have to be summed over the ranks"
        )
    if parallel.data_parallel_size > 1:
        refuse("data_parallel_size", parallel.data_parallel_size, "1; start one server for each")
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            refuse(name, getattr(parallel, name), "1: the entries of a request are in one place")
    if parallel.use_ubatching:
        refuse("enable_dbo, ubatch_size", True, "no microbatching: a step is planned as a whole")
    if config.kv_transfer_config is not None:
        refuse(
            "kv_transfer_config",
            config.kv_transfer_config.kv_connector,
            "none: a connector takes it that all layers hold the same tokens",
        )
    if cache.kv_sharing_fast_prefill:
        refuse("kv_sharing_fast_prefill", True, "False")
    if cache.cache_dtype != "auto":
        refuse("kv_cache_dtype", cache.cache_dtype, "'auto': scores are made of keys as they are")
    if config.use_v2_model_runner:
        refuse("VLLM_USE_V2_MODEL_RUNNER", 1, "0: the plugin tells vLLM's first model runner about its requests")
    if parallel.worker_cls not in ("auto", WORKER):
        refuse("worker_cls", parallel.worker_cls, f"'auto', which the plugin makes {WORKER}")
    if scheduler.scheduler_cls not in (None, SCHEDULER):
        refuse("scheduler_cls", scheduler.scheduler_cls, f"none, which the plugin makes {SCHEDULER}")
    additional = config.additional_config if isinstance(config.additional_config, dict) else {}
    check_choice("additional_config.distill_blocks", additional.get("distill_blocks", "auto"), BLOCKS)


#: what the plugin sets in the config of an engine
WORKER = "distill.engines.worker.DistillCPUWorker"
SCHEDULER = "distill.engines.scheduling.make_scheduler"


def check_caches(config: Any) -> None:
    """Raises a `ValueError` if an engine is set up with something that saved caches cannot be honoured with.

    Args:
        config: a `vllm.config.VllmConfig` whose connector is ours.
    """
    model, parallel, cache = config.model_config, config.parallel_config, config.cache_config
    transfer = config.kv_transfer_config
    extra, failure = transfer.kv_connector_extra_config, transfer.kv_load_failure_policy
    device, sizes = config.device_config.device_type, (parallel.tensor_parallel_size, parallel.pipeline_parallel_size)
    for name, got, fits, allowed in (
        (
            "kv_connector_extra_config",
            extra,
            isinstance(extra.get("folder"), str),
            "{'folder': a folder whose subfolders are saved caches}",
        ),
        (
            "kv_load_failure_policy",
            failure,
            failure == "fail",
            "'fail': without its cache, a request would be answered from the tokens that were kept",
        ),
        ("device", device, device == "cpu", "'cpu', the only one that is tested"),
        (
            "architecture",
            model.architecture,
            model.architecture in {*SUPPORTED, *SUPPORTED.values()},
            ", ".join(sorted(SUPPORTED.values())),
        ),
        (
            "enable_prefix_caching",
            cache.enable_prefix_caching,
            not cache.enable_prefix_caching,
            "False: a prompt of the same tokens without the cache is another one",
        ),
        ("kv_cache_dtype", cache.cache_dtype, cache.cache_dtype == "auto", "'auto': entries are as they were saved"),
        ("enable_lora", True, config.lora_config is None, "False: adapters change keys and values"),
        ("speculative_config", "one", config.speculative_config is None, "none: a draft model has no such cache"),
        ("tensor_parallel_size", sizes[0], sizes[0] == 1, "1: a cache holds all heads"),
        ("pipeline_parallel_size", sizes[1], sizes[1] == 1, "1: a cache holds all layers"),
    ):
        if not fits:
            raise ValueError(f"{name}: got {shown(got)}; allowed with saved caches: {allowed}")


#: settings of a request that ask what the model says of the prompt's own tokens
PROMPT_SCORES = ("prompt_logprobs", "prompt_logprob_token_ids")


def check_request(params: Any, question: bool) -> None:
    """Raises a `ValueError` if a request wants what a policy cannot give.

    Args:
        params: its `vllm.SamplingParams`.
        question: whether the model's policy keeps a question.
    """
    if (params.extra_args or {}).get(CACHE) is not None:
        raise ValueError(
            f"extra_args.{CACHE}: got {shown(params.extra_args[CACHE])}; allowed where the server was started with "
            "saved caches, and no policy"
        )
    if request_policy(PromptDistill([0], [1], question=question), params.extra_args) is None:
        return
    for name in PROMPT_SCORES:
        if getattr(params, name) is not None:
            refuse(
                name,
                getattr(params, name),
                "none: tokens that were dropped have no output; extra_args={'distill': 'off'} turns the policy off",
            )
