"""LLMLingua's calls, for programs that have them: `from distill.llmlingua import PromptCompressor`."""

from distill.pruning.llmlingua import PromptCompressor

__all__ = ["PromptCompressor"]
