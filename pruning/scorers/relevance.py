"""Scores sentences by what they have to do with a question.

For questions about documents, choosing whole sentences is better than deleting tokens (Jha et al. 2024; Provence,
2025).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from distill.pruning.checks import Unfit, bad, whole
from distill.pruning.progress import progress
from distill.pruning.scorers.base import Check, Scorer, Scores, pad, positions_of
from distill.pruning.scorers.baseline import words_of
from distill.pruning.scorers.causal import batch_tokens, bos_prefix, surprisal
from distill.pruning.sentences import sentence_spans
from distill.pruning.tokenization import Encoder
from distill.pruning.units import split_units
from distill.pruning.words import FUNCTION_WORDS


def _groups(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Indices into `lengths`, in groups of similar length with at most `tokens` tokens each, padding included."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda j: (lengths[j], j)):
        if groups and lengths[i] * (len(groups[-1]) + 1) <= tokens:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


class Relevance(Scorer):
    """Cuts texts into sentences and scores each of them; a subclass says how."""

    level = "sentence"
    uses_question = True

    @abstractmethod
    def _relevance(self, sentences: list[str], question: str, check: Check | None) -> np.ndarray:
        """The score of each sentence, from 0 to 1; float64 `(sentences,)`."""

    def score_many(
        self, texts: Sequence[str], question: str | None = None, check: Check | None = None
    ) -> list[Scores]:
        """Scores the sentences of each text. See `Scorer.score_many`.

        Raises:
            ValueError: there is no question, or it is too long for the model.
        """
        if not question or not question.strip():
            raise bad("question", question, f"questions with words, for the scorer {self.name}")
        found = []
        for text in texts:
            spans = sentence_spans(text)
            offsets = np.array(spans, dtype=np.int64).reshape(-1, 2)
            sentences = [text[a:b] for a, b in spans]
            values = self._relevance(sentences, question, check) if sentences else np.empty(0)
            found.append(Scores(offsets[:, 0], offsets[:, 1], values))
        return found


class CrossEncoder(Relevance):
    """Scores with a sequence classifier that reads question and sentence together, such as a reranker.

    The score is the sigmoid of a model's only output, or the softmax of the last of several. A sentence that is too
    long for the model is scored in parts, and the best part counts.

    Args:
        model: a sequence classifier.
        tokenizer: its tokenizer.
        name: what reports call it.
        window: tokens read at once, question and special tokens included.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, window: int = 512) -> None:
        limit = positions_of(model)
        self.window = whole("window", window, 32)
        if limit is not None:
            self.window = min(self.window, limit)
        self.model, self.tokenizer, self.name = model, tokenizer, f"cross-encoder({name})"
        self.encoder = Encoder(tokenizer)
        self._special = len(tokenizer("a", "a").input_ids) - 2 * len(
            tokenizer("a", add_special_tokens=False).input_ids
        )

    def _parts(self, sentences: list[str], room: int) -> list[tuple[int, str]]:
        parts = []
        for i, (sentence, encoded) in enumerate(zip(sentences, self.encoder.encode(sentences), strict=True)):
            for begin in range(0, max(len(encoded.ids), 1), room):
                last = min(begin + room, len(encoded.ids)) - 1
                parts.append((i, sentence[encoded.starts[begin] : encoded.ends[last]] if last >= 0 else sentence))
        return parts

    @torch.inference_mode()
    def _relevance(self, sentences: list[str], question: str, check: Check | None) -> np.ndarray:
        asked = self.encoder.count([question])[0]
        room = self.window - self._special - asked - 4  # a part that is tokenized again may have a token or two more
        if room < 16:
            raise Unfit("question", f"{asked} tokens", f"up to {asked + room - 16} for this model")
        parts = self._parts(sentences, room)
        values = np.zeros(len(sentences))
        groups = _groups([len(p) for _, p in parts], 4 * batch_tokens(self.model))  # about 4 letters a token
        for group in progress(groups, "reading sentences"):
            if check is not None:
                check()
            pairs = [(question, parts[i][1]) for i in group]
            inputs = self.tokenizer(
                pairs, padding=True, truncation="only_second", max_length=self.window, return_tensors="pt"
            )
            logits = self.model(**inputs.to(self.model.device)).logits.float()
            found = logits[:, 0].sigmoid() if logits.shape[1] == 1 else logits.softmax(-1)[:, -1]
            np.maximum.at(values, [parts[i][0] for i in group], found.double().cpu().numpy())
        return values


class QuestionLikelihood(Relevance):
    """Scores a sentence by how much it helps a causal LM to predict the question.

    The gain g is the mean over the tokens of the question of
    max(0, log2 p(token | sentence, question so far) - log2 p(token | question so far)), and the score is g / (g + 1).
    Words of the question that the sentence makes less likely count as 0. A sentence that is too long for the model is
    scored in parts, and the best part counts.

    Args:
        model: a causal LM.
        tokenizer: its tokenizer.
        name: what reports call it.
        window: tokens read at once, question included.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, window: int = 512) -> None:
        limit = positions_of(model)
        self.window = whole("window", window, 32)
        if limit is not None:
            self.window = min(self.window, limit)
        self.model, self.name = model, f"question-likelihood({name})"
        self.encoder = Encoder(tokenizer)
        self._prefix = bos_prefix(tokenizer)

    def _relevance(self, sentences: list[str], question: str, check: Check | None) -> np.ndarray:
        asked = self.encoder.encode([f"\n{question.strip()}"])[0].ids
        room = self.window - len(self._prefix) - len(asked)
        if room < 16:
            raise Unfit("question", f"{len(asked)} tokens", f"up to {len(asked) + room - 16} for this model")
        parts = [
            (i, encoded.ids[begin : begin + room])
            for i, encoded in enumerate(self.encoder.encode(sentences))
            for begin in range(0, len(encoded.ids), room)
        ]
        alone = self._bits([np.empty(0, dtype=np.int64)], asked)[0]
        values = np.zeros(len(sentences))
        tokens = batch_tokens(self.model)
        for group in progress(_groups([len(p) + len(asked) for _, p in parts], tokens), "reading sentences"):
            if check is not None:
                check()
            bits = self._bits([parts[i][1] for i in group], asked)
            gain = np.maximum(alone - bits, 0.0).mean(-1)
            np.maximum.at(values, [parts[i][0] for i in group], gain / (gain + 1.0))
        return values

    def _bits(self, contexts: list[np.ndarray], asked: np.ndarray) -> np.ndarray:
        """How unexpected the question is after each context, in bits; float64 `(contexts, asked - 1)`.

        The first token of `asked` is a line break, which separates the question from the context and is not counted.
        """
        rows = [np.concatenate([self._prefix, context, asked]) for context in contexts]
        ids, _ = pad(rows, 0)
        found = surprisal(self.model, ids)
        wanted = len(asked) - 1
        return np.stack([bits[len(row) - 1 - wanted : len(row) - 1] for bits, row in zip(found, rows, strict=True)])


class LexicalRelevance(Relevance):
    """Scores a sentence by the share of the question's words that it holds; needs no model.

    Words that few sentences hold weigh more, and function words do not count. Only the first six letters of words are
    compared, so that most endings do not matter. Words that no sentence holds say nothing and do not count.
    """

    name = "lexical"

    def _relevance(self, sentences: list[str], question: str, check: Check | None) -> np.ndarray:
        if check is not None:
            check()
        bags = [_stems(sentence) for sentence in sentences]
        frequency = Counter(stem for bag in bags for stem in bag)
        wanted = {
            stem: math.log((len(bags) + 1) / (frequency[stem] + 0.5)) for stem in _stems(question) if frequency[stem]
        }
        total = sum(wanted.values()) or 1.0
        return np.array([sum(w for stem, w in wanted.items() if stem in bag) / total for bag in bags])


def _stems(text: str) -> set[str]:
    words = [w for w in words_of(split_units(text)) if any(c.isalnum() for c in w)]
    return {w[:6] for w in words if w not in FUNCTION_WORDS}
