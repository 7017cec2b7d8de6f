"""The same policies inside a serving engine: PromptDistill in vLLM, as a plugin, and Ray for whole corpora.

Nothing here is imported by `import distill`, and importing this package needs no engine. vLLM finds
`distill.engines.plugin` by an entry point of the installed package. What a policy chooses is decided by the code that
decides it on Transformers (`distill.models.promptdistill_run`, with the scores of `distill.patches.selection`).
"""

from distill.engines.settings import SUPPORTED, VLLM, cache_arguments, engine_arguments

__all__ = ["SUPPORTED", "VLLM", "cache_arguments", "engine_arguments"]
