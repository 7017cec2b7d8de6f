"""`GET /distill/metrics` on vLLM's OpenAI-compatible server: what the policy has saved, for Prometheus.

vLLM's own `/metrics` has times, queues and the use of the cache. It adds routes of a plugin only where the environment
variable `VLLM_PLUGINS` names it, which `distill serve-vllm` sees to.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse

_HELP = {
    "prompts": "prompts read under the policy",
    "prompts_off": "prompts read with the policy off",
    "tokens": "tokens of the prompts read under the policy",
    "layer_tokens": "tokens times layers that the stock model would have computed of these prompts",
    "layer_tokens_kept": "tokens times layers of these prompts that were computed and cached",
}


def exposition(totals: dict[str, int]) -> str:
    """The totals in Prometheus's text format, and the share of them that was kept."""
    lines: list[str] = []
    for name, text in _HELP.items():
        full = f"distill_{name}_total"
        lines += [f"# HELP {full} {text}", f"# TYPE {full} counter", f"{full} {totals.get(name, 0)}"]
    stock, kept = totals.get("layer_tokens", 0), totals.get("layer_tokens_kept", 0)
    gauges = {
        "kept_share": ("share of these tokens times layers that was kept", kept / stock if stock else 1.0),
        "layer_tokens_saved": ("tokens times layers that were not computed", stock - kept),
    }
    for name, (text, value) in gauges.items():
        lines += [f"# HELP distill_{name} {text}", f"# TYPE distill_{name} gauge", f"distill_{name} {value}"]
    return "\n".join(lines) + "\n"


class Metrics:
    """The route; an endpoint plugin of vLLM."""

    name = "distill"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Adds the route."""

        @app.get("/distill/metrics", response_class=PlainTextResponse)
        async def metrics(request: Request) -> str:
            engine = request.app.state.distill_engine
            found = await engine.collective_rpc("distill_totals")
            return exposition(found[0])

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Remembers the engine."""
        state.distill_engine = engine_client
