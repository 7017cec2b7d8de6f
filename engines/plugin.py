"""The entry point that vLLM calls in each of its processes: makes our architectures and their policy known to it.

A checkpoint saved by distill then loads as any other; `distill.engines.engine_arguments` puts a policy on a stock one.
"""

from __future__ import annotations

from typing import Any

import vllm
from vllm.config import ModelConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.logger import init_logger
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

import distill.models  # registers our configs with Transformers, by which vLLM reads a checkpoint's  # noqa: F401
from distill.engines.checks import SCHEDULER, WORKER, check_caches, check_engine
from distill.engines.prefix import Caches
from distill.engines.settings import CONNECTOR, SUPPORTED, check_version, policy_of
from distill.patches.checks import shown

logger = init_logger("vllm.distill")

#: check the parameters of each request where it comes in, by whether the policy keeps a question
REQUESTS = {False: "distill.engines.requests:RequestCheck", True: "distill.engines.requests:QuestionCheck"}


def watch_caches(vllm_config: Any) -> None:
    """Has requests looked at where they come in, if the engine is given saved caches."""
    transfer, model = vllm_config.kv_transfer_config, vllm_config.model_config
    if transfer is None or transfer.kv_connector != CONNECTOR:
        return
    check_caches(vllm_config)
    from distill.engines.requests import CacheCheck

    folder = transfer.kv_connector_extra_config["folder"]
    CacheCheck.caches[folder] = Caches(folder, model.hf_config)
    model.logits_processors = [*(model.logits_processors or []), "distill.engines.requests:CacheCheck"]


class DistillModelConfig(ModelConfig):
    """vLLM's config of a model under a policy: prefix caching is off unless asked for, which is then refused."""

    @property
    def is_prefix_caching_supported(self) -> bool:
        return False


class PolicyConfig(VerifyAndUpdateConfig):
    """What vLLM asks about an engine whose model is one of ours."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        policy = policy_of(model_config.hf_config)
        if policy is None:
            return
        model_config.__class__ = DistillModelConfig
        # a step's rows differ from stage to stage, and with the data; what is compiled or recorded is not asked
        model_config.enforce_eager = True
        model_config.logits_processors = [*(model_config.logits_processors or []), REQUESTS[policy.question]]

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        policy = policy_of(vllm_config.model_config.hf_config)
        if policy is None:
            watch_caches(vllm_config)
            return
        check_engine(vllm_config, policy)
        vllm_config.parallel_config.worker_cls = WORKER
        vllm_config.scheduler_config.scheduler_cls = SCHEDULER
        logger.info("distill: runs under %s", policy)


class StockConfig(VerifyAndUpdateConfig):
    """Refuses a policy on a stock architecture, which would run without it."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        watch_caches(vllm_config)

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        policy = getattr(model_config.hf_config, "policy", None)
        if policy is not None:
            ours = {stock: ours for ours, stock in SUPPORTED.items()}[model_config.architecture]
            raise ValueError(
                f"hf_overrides: got a policy ({shown(policy)}) for {model_config.architecture}, which ignores it; "
                f"allowed with 'architectures': ['{ours}'] beside it (see distill.engines.engine_arguments)"
            )


def register() -> None:
    """Makes everything known to vLLM; can be called again.

    A version of vLLM that is not tested gets a logged error, and our architectures then refuse to load: raising here
    would keep vLLM from serving anything else.
    """
    for ours in SUPPORTED:
        ModelRegistry.register_model(ours, f"distill.engines.architectures:{ours}")
    try:
        check_version(vllm.__version__)
    except ValueError as error:
        logger.error("distill: %s", error)
        return
    from distill.engines.blocks import register_blocks

    register_blocks()
    if CONNECTOR not in KVConnectorFactory._registry:
        KVConnectorFactory.register_connector(CONNECTOR, "distill.engines.connector", "DistillCaches")
    for ours, stock in SUPPORTED.items():
        MODELS_CONFIG_MAP[ours] = PolicyConfig
        MODELS_CONFIG_MAP.setdefault(stock, StockConfig)
