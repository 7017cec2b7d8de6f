"""Options by name: which there are, and what stands here for those of LLMLingua's `PromptCompressor`.

Integrations such as LangChain's and LlamaIndex's call `compress_prompt` the way LLMLingua has it. They get an error
that says what to use, because results differ in form (a list of strings here, a dict there).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill.pruning.checks import BadArgument, unknown

CONSTRUCTOR = (
    "model_name", "device_map", "model", "tokenizer", "scorer", "ner", "rules", "target_tokenizer", "question_model",
    "dtype", "aggregate", "layout", "compat",
)  # fmt: skip
COMPRESS = (
    "rate", "reduce_rate", "target_tokens", "threshold", "question", "force_tokens", "keywords", "patterns",
    "keep_tags", "segments", "anchors", "scope", "on_over_budget", "check",
)  # fmt: skip
COMPAT = (
    "rate", "target_token", "use_context_level_filter", "context_level_rate", "force_context_ids", "force_tokens",
    "force_reserve_digit", "drop_consecutive", "token_to_word", "chunk_end_tokens",
)  # fmt: skip

_ONLY_COMPAT = "those of Distill(model_name, compat='llmlingua2') and of the package llmlingua"
_NOTHING = "none: contexts are not ranked or reordered here; scope='all' shares one budget among texts"
LLMLINGUA: dict[str, str] = {
    "context": "texts: pass the list of texts as the first argument; the answer is a list of strings",
    "prompt": "texts: pass the list of texts as the first argument; the answer is a list of strings",
    "target_token": "target_tokens, the most tokens to keep of each text (with scope='all': of all texts)",
    "instruction": "none: put the instruction before the shortened texts yourself, or use PruneThenGenerate",
    "concate_question": "none: put the question after the shortened texts yourself, or use PruneThenGenerate",
    "force_reserve_digit": "Distill(rules=['number']); all rules are on by default",
    "drop_consecutive": _ONLY_COMPAT,
    "chunk_end_tokens": _ONLY_COMPAT,
    "force_context_ids": _ONLY_COMPAT,
    "use_context_level_filter": _ONLY_COMPAT,
    "use_token_level_filter": _ONLY_COMPAT,
    "context_level_rate": _ONLY_COMPAT,
    "context_level_target_token": _ONLY_COMPAT,
    "token_to_word": "Distill(aggregate='mean'), 'max' and 'first'",
    "ratio": "reduce_rate, the share of tokens to remove, and rate, the share to keep",
    "iterative_size": "none: a text is scored in one pass",
    "use_sentence_level_filter": "question, which keeps whole sentences",
    "keep_split": "layout='keep' of Distill, which is the default",
    "keep_first_sentence": "<keep>...</keep> around that sentence in the text",
    "keep_last_sentence": "<keep>...</keep> around that sentence in the text",
    "keep_sentence_number": "<keep>...</keep> around those sentences in the text",
    "high_priority_bonus": "<keep>...</keep> around what must stay",
    "rank_method": "Distill(scorer=...)",
    "return_word_label": "compress(text).spans, the characters that stayed",
    "word_sep": "compress(text).spans, the characters that stayed",
    "label_sep": "compress(text).spans, the characters that stayed",
    "strict_preserve_uncompressed": "<keep>...</keep> around what must stay",
    "dynamic_context_compression_ratio": _NOTHING,
    "context_budget": _NOTHING,
    "token_budget_ratio": _NOTHING,
    "condition_in_question": _NOTHING,
    "reorder_context": _NOTHING,
    "condition_compare": _NOTHING,
    "add_instruction": _NOTHING,
    "use_llmlingua2": "Distill(model_name, compat='llmlingua2')",
    "use_slingua": "Distill(model_name, compat='llmlingua2')",
    "model_config": "model and tokenizer, loaded as you like",
    "llmlingua2_config": "Distill(model_name, compat='llmlingua2')",
    "open_api_config": "none: only models on this machine score texts",
    "trust_remote_code": "none: remote code is never run",
}


def refuse(options: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuses options that do not exist here.

    Args:
        options: what came.
        known: the names of what is allowed.

    Raises:
        ValueError: an option that is not in `known`, naming the first and, for one of LLMLingua, what to use in its
            place.
    """
    strange = [option for option in options if option not in known]
    for option in strange:
        if option in LLMLINGUA:
            raise BadArgument(option, "an option of another package", LLMLINGUA[option])
    unknown(strange, known)
