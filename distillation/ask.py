"""A document is read once, and its cache is asked any number of questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from distill.distillation.document import DocumentCache, Origin, copied, joined, origin_of
from distill.distillation.fingerprint import check_model, check_tokenizer, model_print, tokenizer_print
from distill.models.asking import Encoder, Prompt, chat, generate_behind
from distill.models.using import CONFIGURED
from distill.patches.cache import KeptLayer
from distill.patches.checks import check_integer, shown
from distill.patches.grammar import read_policy
from distill.patches.masks import sliding_window

#: stands for a text that is not there, where a chat template needs one
_ANY = "x"


@torch.no_grad()
def read_document(
    model: Any,
    tokenizer: Any,
    document: str,
    policy: Any = CONFIGURED,
    *,
    name: str | None = None,
    in_chat: bool | None = None,
    prefill_chunk_size: int | None = None,
) -> DocumentCache:
    """Reads a text whose questions are not known yet, and returns the cache that is left of it.

    Args:
        model: a causal LM from `distill.load`.
        tokenizer: its tokenizer.
        document: the text.
        policy: what it is read under: a `Policy`, its name, its JSON form, or `None` for the whole cache; by default,
            that of the model.
        name: what the text is called.
        in_chat: read it as the beginning of a user's message in the tokenizer's chat template; by default, if it has
            one.
        prefill_chunk_size: read it in pieces of so many tokens.
    Raises:
        ValueError: an empty text, a template that changes texts, or a policy that cannot run on the model.
    """
    encoder = Encoder(tokenizer)
    in_chat = _has_template(tokenizer) if in_chat is None else in_chat
    text = chat(tokenizer, Prompt(document, f"\n{_ANY}")).context if in_chat else document
    ids = torch.tensor([encoder.encode(text)])
    if not document.strip():
        raise ValueError(f"document: got {shown(document)}; allowed are texts")
    if not hasattr(model, "using"):
        raise ValueError(f"model: got a {type(model).__name__}; allowed are models from distill.load")
    used = model._resolve(policy if policy is CONFIGURED else read_policy(policy))
    extra = {} if prefill_chunk_size is None else {"prefill_chunk_size": prefill_chunk_size}
    cache = model(ids.to(model.device), policy=used, use_cache=True, logits_to_keep=1, **extra).past_key_values
    origin = Origin(
        seen=ids.shape[1],
        lengths=(ids.shape[1],),
        ids=ids,
        model=model_print(model),
        tokenizer=tokenizer_print(tokenizer),
        policy=None if used is None else used.to_dict(),
        chat=in_chat,
        document=document,
        name=name,
    )
    return DocumentCache.of(cache, origin)


def ask(
    model: Any,
    tokenizer: Any,
    cache: Any,
    question: str | Sequence[str],
    max_new_tokens: int = 64,
    *,
    in_chat: bool | None = None,
    ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    policy: Any = None,
    **settings: Any,
) -> str | list[str]:
    """Answers one or more questions about what a cache holds. The cache stays as it was.

    The question is read right behind what the cache has seen, word for word; begin it with a line break if the text
    did not end with one. Nothing more is dropped while it is read, unless `policy` says so.

    Args:
        model: the model that filled the cache.
        tokenizer: its tokenizer.
        cache: a filled `DynamicCache`: of a stock model, under a policy, or loaded. A list of caches (of one text
            each, of any lengths) is one batch.
        question: one question, or a list: as many as the cache has rows, or any number about a cache with one row.
            They are answered as one batch, each as if it were alone.
        max_new_tokens: most tokens of an answer.
        in_chat: the text stands in an open user message of the tokenizer's chat template, so its end is put behind the
            question; by default as was said when the text was read or saved, else if there is a template.
        ids: `(batch, seen)` what the cache has read, for rules such as `repetition_penalty`, where the cache does not
            know.
        attention_mask: `(batch, seen)`, for a stock cache with padding.
        policy: what drops entries while the question is read.
        settings: further arguments of `generate`, such as `num_beams`; without `do_sample`, decoding is greedy.
    Returns:
        the answer; a list of them if `question` is a list or the cache has several rows.
    Raises:
        ValueError: an empty question, numbers that do not fit, a tokenizer or a model that this cache is not of, or
            `num_return_sequences` above 1.
    """
    check_integer("max_new_tokens", max_new_tokens, 1)
    if settings.get("num_return_sequences", 1) not in (None, 1):
        raise ValueError(
            f"num_return_sequences: got {settings['num_return_sequences']}; allowed is 1 (put the question more often)"
        )
    cache = joined(cache) if isinstance(cache, (list, tuple)) else copied(cache)
    origin = origin_of(cache)
    if origin.model is not None:
        check_model(origin.model, model)
    if origin.tokenizer is not None:
        check_tokenizer(origin.tokenizer, tokenizer)
    in_chat = origin.chat if in_chat is None else in_chat
    rows = len(origin.lengths)
    questions = [question] * rows if isinstance(question, str) else list(question)
    if not questions or not all(isinstance(text, str) and text for text in questions):
        raise ValueError(f"question: got {shown(question)}; allowed are texts, and lists of texts")
    asked = question_ids(tokenizer, questions, in_chat)
    given = {"do_sample": False, "pad_token_id": _padding(tokenizer), "max_new_tokens": max_new_tokens} | settings
    known = origin.ids if ids is None else ids
    parts = _batches(model, cache, asked, known, attention_mask)
    decode = Encoder(tokenizer).decode
    answers = [decode(row) for part in parts for row in _new_tokens(model, policy=policy, **part, **given)]
    return answers[0] if isinstance(question, str) and rows == 1 else answers


def question_ids(tokenizer: Any, questions: Sequence[str], in_chat: bool | None = None) -> list[list[int]]:
    """Token ids of questions, as they are read right behind a document.

    Args:
        in_chat: the document stands in an open user message of the chat template, so its end is put behind each
            question; by default, if the tokenizer has a template.
    """
    encoder = Encoder(tokenizer)
    in_chat = _has_template(tokenizer) if in_chat is None else in_chat
    return [encoder.plain(chat(tokenizer, Prompt(_ANY, text)).question if in_chat else text) for text in questions]


def _batches(
    model: Any, cache: Any, questions: list[list[int]], known: Tensor | None, mask: Tensor | None
) -> Iterator[dict[str, Any]]:
    """Arguments of `generate_behind`, as a rule for one batch of all questions.

    A stock model counts a sliding window in columns, padding between text and question included: there, questions of
    unequal length are put one by one.
    """
    whole = {"cache": cache, "questions": questions, "known": known, "mask": mask}
    stock = not all(isinstance(layer, KeptLayer) for layer in cache.layers)
    windows = [sliding_window(model.config, index) for index in range(len(cache.layers))]
    rows = len(cache.layers[0].keys)
    alike = len({len(question) for question in questions}) == 1
    if not stock or alike or not any(windows) or rows not in (1, len(questions)):
        yield whole
        return
    for number, question in enumerate(questions):
        one, place = copied(cache), torch.tensor([number if rows > 1 else 0])
        one.batch_select_indices(place)
        parts = {name: None if part is None else part[place] for name, part in (("known", known), ("mask", mask))}
        yield {"cache": one, "questions": [question], **parts}


def _new_tokens(model: Any, **arguments: Any) -> list[list[int]]:
    cache = arguments["cache"]
    start = cache.get_seq_length() + max(map(len, arguments["questions"]), default=0)
    return generate_behind(model, **arguments).sequences[:, start:].tolist()


def _padding(tokenizer: Any) -> int:
    found = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(token) for token in found if token is not None)


def _has_template(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "chat_template", None))
