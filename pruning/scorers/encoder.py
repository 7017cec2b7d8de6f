"""Scores sentences by a sentence encoder and word overlap together.

Neither is enough alone: the encoder knows that "penned" means "wrote", overlap knows that the name in the question has
to be the name in the sentence.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.pruning.checks import BadArgument, bad, model_source, number
from distill.pruning.progress import progress
from distill.pruning.scorers.base import Check
from distill.pruning.scorers.relevance import LexicalRelevance, Relevance
from distill.pruning.tokenization import unloadable

EXTRA = "pip install 'distill-llm[question]'"
PACKAGE = "all_minilm_l6_v2"
BATCH = 64  # sentences encoded at once
CACHED = 20_000  # embeddings that are kept, 384 numbers each for MiniLM
# Fitted on the first 24 articles of XQuAD (conditional logit; `benchmarks/pruning.py fit`): 2.3 to 3.7.
OVERLAP_SHARE = 0.62


def packaged_encoder() -> Path | None:
    """The folder of the sentence encoder all-MiniLM-L6-v2 that the extra `question` installs; None without it.

    The package ships it as an archive, which is unpacked once, beside the user's other caches.
    """
    spec = importlib.util.find_spec(PACKAGE)
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    archive = next((path for place in places for path in Path(place).glob("model.zip")), None)
    if archive is None or importlib.util.find_spec("sentence_transformers") is None:
        return None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distill"
    folder = cache / f"all-MiniLM-L6-v2-{archive.stat().st_size}"
    if not (folder / "config.json").exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as made, zipfile.ZipFile(archive) as packed:
            packed.extractall(Path(made) / "model")
            try:
                (Path(made) / "model").rename(folder)
            except OSError:  # another process was faster
                if not (folder / "config.json").exists():
                    raise
    return folder


def load_question_model(model: Any, device_map: str) -> Any:
    """The model of sentence-transformers that an argument means: an encoder, or a cross-encoder.

    Args:
        model: a loaded `SentenceTransformer` or `CrossEncoder`, or the name or folder of a sentence encoder.
        device_map: where it runs.

    Raises:
        ValueError: it is none of these, cannot be loaded, or sentence-transformers is not installed.
    """
    if not isinstance(model, (str, Path)) and (hasattr(model, "predict") or hasattr(model, "encode")):
        return model
    name = model_source("question_model", model)
    if importlib.util.find_spec("sentence_transformers") is None:
        raise BadArgument("question_model", f"{name!r} without sentence-transformers", f"None, or after {EXTRA}")
    from sentence_transformers import CrossEncoder, SentenceTransformer

    from distill.pruning.loading import architecture

    try:
        if Path(name).exists() and architecture(name) == "sequence-classification":
            return CrossEncoder(name, device=device_map)
    except ValueError:
        pass  # an encoder has no head
    try:
        return SentenceTransformer(name, device=device_map)
    except Exception as error:  # a damaged or foreign folder can make the loader fail in any way
        raise unloadable("question_model", name, "sentence encoders", error) from error


class SentenceEncoder(Relevance):
    """Scores a sentence by (1 - s) * cosine + s * overlap, both from 0 to 1.

    The cosine is that of the embeddings of question and sentence, overlap is the score of `LexicalRelevance`. A
    sentence that is too long for the encoder is read in parts, and the best part counts. Embeddings of sentences are
    kept, so a document that is asked again is not read again.

    Args:
        model: a `SentenceTransformer`, or a `CrossEncoder` of sentence-transformers, whose score (a sigmoid, where it
            is none) takes the place of the cosine.
        name: what reports call it.
        overlap: the share s of word overlap, from 0 to 1.

    Raises:
        ValueError: a model that is neither, or `overlap` out of range.
    """

    def __init__(self, model: Any, name: str = "", overlap: float = OVERLAP_SHARE) -> None:
        self.overlap = number("overlap", overlap, 0, 1)
        self.pairs = hasattr(model, "predict")
        if not self.pairs and not hasattr(model, "encode"):
            raise bad("model", model, "models of sentence-transformers")
        self.model = model
        kind = "cross-encoder" if self.pairs else "encoder"
        self.name = f"{kind}({name or type(model).__name__}) + overlap"
        self._lexical = LexicalRelevance()
        self._known: OrderedDict[str, np.ndarray] = OrderedDict()

    def _relevance(self, sentences: list[str], question: str, check: Check | None) -> np.ndarray:
        shared = self._lexical._relevance(sentences, question, check)
        if self.overlap == 1:
            return shared
        parts = [(i, part) for i, sentence in enumerate(sentences) for part in self._parts(sentence)]
        found = self._paired(question, parts, check) if self.pairs else self._cosines(question, parts, check)
        values = np.zeros(len(sentences))
        np.maximum.at(values, [i for i, _ in parts], found)
        return np.clip((1 - self.overlap) * values + self.overlap * shared, 0.0, 1.0)

    def _parts(self, sentence: str) -> list[str]:
        """A sentence in parts of about as many words as the model reads; it cuts off what is longer."""
        limit = int(getattr(self.model, "max_seq_length", None) or getattr(self.model, "max_length", None) or 256)
        size = 3 * limit  # characters; there are seldom fewer than three in a token
        return [sentence[i : i + size] for i in range(0, len(sentence), size)] or [""]

    def _cosines(self, question: str, parts: Sequence[tuple[int, str]], check: Check | None) -> np.ndarray:
        asked = self._encode([question], None)[0]
        missing = list(dict.fromkeys(part for _, part in parts if part not in self._known))
        new = dict(zip(missing, self._encode(missing, check), strict=True))
        known = {part: self._known[part] for _, part in parts if part in self._known}
        for part, vector in new.items():
            self._known[part] = vector
        while len(self._known) > CACHED:
            self._known.popitem(last=False)
        return np.array([max(0.0, float((known | new)[part] @ asked)) for _, part in parts])

    def _encode(self, texts: list[str], check: Check | None) -> list[np.ndarray]:
        found: list[np.ndarray] = []
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
        for begin in progress(range(0, len(texts), BATCH), "encoding sentences", enough=4):
            if check is not None:
                check()
            batch = [texts[i] for i in order[begin : begin + BATCH]]
            found += list(
                self.model.encode(batch, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)
            )
        places = np.argsort(order)
        return [np.asarray(found[i], dtype=np.float64) for i in places]

    def _paired(self, question: str, parts: Sequence[tuple[int, str]], check: Check | None) -> np.ndarray:
        found: list[np.ndarray] = []
        for begin in progress(range(0, len(parts), BATCH), "reading sentences", enough=4):
            if check is not None:
                check()
            pairs = [(question, part) for _, part in parts[begin : begin + BATCH]]
            found.append(np.asarray(self.model.predict(pairs, batch_size=BATCH, show_progress_bar=False), dtype=float))
        values = np.concatenate(found) if found else np.empty(0)
        values = values if values.ndim == 1 else values[:, -1]
        # a head with one output gives probabilities or logits, by its configuration
        outside = values.size and (values.min() < 0 or values.max() > 1)
        return 1 / (1 + np.exp(-np.clip(values, -60, 60))) if outside else values
