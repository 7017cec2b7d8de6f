"""vLLM's worker and model runner on the CPU, which tell the model about the requests of each step."""

from __future__ import annotations

from typing import Any

from vllm.logger import init_logger
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from distill.engines.blocks import is_stock, later_specs
from distill.engines.layout import plan_of
from distill.engines.metadata import Metadata
from distill.engines.retention import Part
from distill.engines.settings import own_blocks, request_policy

logger = init_logger("vllm.distill")


class DistillCPUModelRunner(CPUModelRunner):
    """Plans each step, and forgets requests as soon as the scheduler says that they are gone."""

    model: Any

    @property
    def retention(self) -> Any:
        """The model's requests under its policy; `None` where it has no policy."""
        return self.get_model().retention

    def _update_states(self, scheduler_output: Any) -> Any:
        if self.retention is not None:
            gone = {*scheduler_output.finished_req_ids, *(scheduler_output.preempted_req_ids or ())}
            for request in gone:
                self.retention.drop(request)
        return super()._update_states(scheduler_output)

    def parts(self) -> list[Part]:
        """The requests of this step, in the order of the flat batch."""
        batch, policy = self.input_batch, self.retention.policy
        starts = self.query_start_loc.np[: batch.num_reqs + 1].tolist()
        return [
            Part(
                request=request,
                index=index,
                start=starts[index],
                computed=int(batch.num_computed_tokens_cpu[index]),
                count=starts[index + 1] - starts[index],
                length=int(batch.num_prompt_tokens[index]),
                policy=request_policy(policy, self.requests[request].sampling_params.extra_args),
            )
            for index, request in enumerate(batch.req_ids)
        ]

    def _model_forward(self, *args: Any, **kwargs: Any) -> Any:
        step = None if self.retention is None else self.retention.step(self.parts())
        if step is None:
            return super()._model_forward(*args, **kwargs)
        enter = Metadata(self, self.model.names).enter
        try:
            return super()._model_forward(*args, **kwargs, step=step, enter=enter)
        except BaseException:
            step.failed()
            raise

    def get_kv_cache_spec(self) -> dict[str, Any]:
        """As stock, with blocks of their own for the layers behind a selection where that needs fewer."""
        specs = super().get_kv_cache_spec()
        if self.retention is None or not all(is_stock(spec) for spec in specs.values()):
            return specs
        policy, config = self.retention.policy, self.model_config.hf_config
        block_size = next(iter(specs.values())).block_size
        plan = plan_of(policy, config, self.max_model_len, block_size)
        own = own_blocks(self.vllm_config.additional_config, plan.saving)
        logger.info("distill: %s; later layers have blocks of their %s", plan, "own" if own else "model's one group")
        return later_specs(specs, self.model.names, policy, config) if own else specs


class DistillCPUWorker(CPUWorker):
    """vLLM's worker on the CPU, with our model runner."""

    def init_device(self) -> None:
        super().init_device()
        # the runner holds no model yet; a second one would allocate all its buffers again
        self.model_runner.__class__ = DistillCPUModelRunner

    def distill_totals(self) -> dict[str, int]:
        """What was read so far, see `distill.engines.retention.Totals`; empty where the model has no policy."""
        retention = self.model_runner.retention
        return {} if retention is None else vars(retention.totals)
