"""vLLM's way in for caches from elsewhere: a connector that puts what `distill.save_cache` wrote before a prompt.

A request names a cache of the server's folder, and its prompt begins with the tokens that the cache holds; only what
follows is computed. Loads are of vLLM's asynchronous kind, since only these may fail for one request alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from vllm.distributed.kv_transfer import ensure_kv_transfer_shutdown
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
)
from vllm.logger import init_logger
from vllm.model_executor.models.utils import extract_layer_index

from distill.distillation.fingerprint import check_print, model_print
from distill.engines.checks import check_caches
from distill.engines.prefix import CACHE, Caches, Prefix, check_prompt
from distill.models import load

logger = init_logger("vllm.distill")


@dataclass(frozen=True)
class Load:
    """What the worker reads for one request.

    Attributes:
        name, sha256: the cache; the hash is empty where the request cannot be honoured, and has to fail.
        blocks: ids of the request's blocks.
    """

    name: str
    sha256: str
    blocks: tuple[int, ...] = ()


@dataclass
class Loads(KVConnectorMetadata):
    """The loads of a step, by request."""

    requests: dict[str, Load] = field(default_factory=dict)


class DistillCaches(KVConnectorBase_V1):
    """The connector: one object in the scheduler, one in the worker.

    Its `kv_connector_extra_config` has `"folder"`: the folder whose subfolders are the caches that can be asked for.

    Raises:
        ValueError: settings that caches cannot be honoured with, no such folder, or a cache in it of another model.
    """

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        check_caches(vllm_config)
        model = vllm_config.model_config
        self.caches = Caches(vllm_config.kv_transfer_config.kv_connector_extra_config["folder"], model.hf_config)
        self._block_size = vllm_config.cache_config.block_size
        if role == KVConnectorRole.SCHEDULER:
            self._next: dict[str, Load] = {}
            # vLLM's weights are fused; a fingerprint is of the checkpoint's, which are read once more for it
            self._model = model_print(load(model.model, policy=None, dtype=model.dtype))
            try:
                for name in self.caches.names:
                    self._check(name)
            except ValueError:
                # the worker of this process, if it is here, has its connector already, and would leave it to the next
                ensure_kv_transfer_shutdown()
                raise
        else:
            self._done: set[str] = set()
            self._failed: set[str] = set()

    # in the scheduler

    def _check(self, name: Any) -> None:
        """Raises a `ValueError` unless a cache is of this model."""
        saved = self.caches.record(name)["model"]
        if saved is not None:  # one that does not know its model is refused when it is read
            try:
                check_print(saved, self._model)
            except ValueError as error:
                raise ValueError(f"cache {name!r}: {error}") from None

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        params = request.sampling_params
        name = None if params is None else (params.extra_args or {}).get(CACHE)
        if name is None:
            return 0, False
        try:
            sha256, prefix = self.caches.prefix(name)
            self._check(name)
            check_prompt(name, prefix, request.prompt_token_ids or [])
        except (ValueError, OSError) as error:
            logger.error("distill: request %s fails: %s", request.request_id, error)
            self._next[request.request_id] = Load(str(name), "")
            return 1, True
        self._next[request.request_id] = Load(name, sha256)
        return len(prefix.ids), True

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if num_external_tokens:
            wanted = self._next[request.request_id]
            self._next[request.request_id] = replace(wanted, blocks=tuple(blocks.get_block_ids()[0]))

    def build_connector_meta(self, scheduler_output: Any) -> Loads:
        # those without blocks are asked about again
        loads = Loads({request: wanted for request, wanted in self._next.items() if wanted.blocks})
        self._next = {}
        return loads

    # in the worker

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        loads = self._get_connector_metadata()
        assert isinstance(loads, Loads)
        layers = forward_context.no_compile_layers
        attentions = [layers[name] for name in sorted(layers, key=extract_layer_index)]
        for request, wanted in loads.requests.items():
            self._done.add(request)
            try:
                if not wanted.sha256:
                    raise ValueError("it cannot be honoured, as the scheduler has said")
                self._write(attentions, self.caches.prefix(wanted.name, wanted.sha256)[1], wanted.blocks)
            except (ValueError, OSError) as error:
                logger.error("distill: no cache is loaded for request %s: %s", request, error)
                self._failed.add(request)

    def _write(self, attentions: list[Any], prefix: Prefix, blocks: tuple[int, ...]) -> None:
        """Writes keys and values into the first entries of a request's blocks, as the attention itself does."""
        entry = torch.arange(len(prefix.ids))
        slots = torch.tensor(blocks)[entry // self._block_size] * self._block_size + entry % self._block_size
        for attention, keys, values in zip(attentions, prefix.keys, prefix.values, strict=True):
            cache = attention.kv_cache
            new = [entries.transpose(0, 1).contiguous().to(cache.device) for entries in (keys, values)]
            attention.impl.do_kv_cache_update(attention, *new, cache, slots.to(cache.device))

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        done, failed, self._done, self._failed = self._done, self._failed, set(), set()
        return KVConnectorTransferResults(finished_recving=done, failed_recving=failed)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing: loads are done when `start_load_kv` returns."""

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        """Nothing: vLLM's own entries are not saved."""

    def wait_for_save(self) -> None:
        """Nothing."""
