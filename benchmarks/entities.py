"""Names, dates and money that are kept whole: the part `entities` of `benchmarks/pruning.py`."""

from __future__ import annotations

import argparse
import re
import statistics
from pathlib import Path
from typing import Any

from material import SHARED, Spans, half_width, model_folder, rows, survives

from distill.pruning import Distill
from distill.pruning.recipe.ner import entities, read_conll


def conll_texts(count: int) -> list[tuple[str, Spans]]:
    """Passages of wikigold, eight sentences each, with their gold entities as character spans."""
    sentences = read_conll(SHARED / "data/ner/wikigold/wikigold.conll.txt")
    found = []
    for i in range(0, min(8 * count, len(sentences)), 8):
        text, spans = "", []
        for words, tags in sentences[i : i + 8]:
            starts = []
            for word in words:
                text += " " if text else ""
                starts.append(len(text))
                text += word
            spans += [(starts[a], starts[b - 1] + len(words[b - 1])) for a, b in entities(tags)]
        found.append((text, spans))
    return found


def labelled() -> list[tuple[str, str, list[tuple[int, int, str]]]]:
    """Kind, text and entities `(start, end, label)` of the sentences in `entities.txt`."""
    found = []
    for line in (Path(__file__).parent / "entities.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        kind, marked = line.split("\t")
        text, spans, at = "", [], 0
        for match in re.finditer(r"\[([^|\]]+)\|([A-Z]+)\]", marked):
            text += marked[at : match.start()]
            spans.append((len(text), len(text) + len(match.group(1)), match.group(2)))
            text += match.group(1)
            at = match.end()
        found.append((kind, text + marked[at:], spans))
    return found


def tweets(path: str) -> list[tuple[str, str, list[tuple[int, int, str]]]]:
    """The posts of one file of WNUT17, words joined by blanks, with their gold entities."""
    found = []
    for words, tags in read_conll(SHARED / "data/ner/WNUT17" / path):
        starts = [sum(len(w) + 1 for w in words[:i]) for i in range(len(words))]
        spans = [(starts[a], starts[b - 1] + len(words[b - 1]), "ENT") for a, b in entities(tags)]
        found.append(("tweets", " ".join(words), spans))
    return found


def news_dates() -> list[tuple[str, str, list[tuple[int, int, str]]]]:
    """Sentences of multi_news with the dates and amounts that were marked in them by hand."""
    documents = [
        " ".join(row["context"].replace("NEWLINE_CHAR", " ").split())
        for row in rows("longbench/multi_news.jsonl.gz", 10**6)
    ]
    found = []
    for line in (Path(__file__).parent / "dates_in_news.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        number, start, end, marked = line.split("\t")
        pairs = [[int(at) for at in pair.split("-")] for pair in marked.split()]
        text = documents[int(number)][int(start) : int(end)]
        found.append(("multi_news", text, [(a, b, "DATE") for a, b in pairs]))
    return found


def entities_kept(args: argparse.Namespace) -> None:
    """Entities that are there in one piece at rate 0.5, by kind of text and by what finds them; no question."""
    folder = model_folder()
    wiki = [("wikigold", text, [(a, b, "ENT") for a, b in spans]) for text, spans in conll_texts(args.count)]
    groups = {"WNUT17 test": tweets("test/emerging.test.annotated"), "wikigold": wiki}
    for kind in ("news", "filing", "letter"):
        groups[kind] = [row for row in labelled() if row[0] == kind]
    kinds = {"dates and money": ("news", "filing", "letter"), "second set": ("later",), "third set": ("again",)}
    for name, wanted in kinds.items():
        groups[name] = [
            (kind, text, [s for s in spans if s[2] in ("DATE", "MONEY")])
            for kind, text, spans in labelled()
            if kind in wanted
        ]
    groups["multi_news, held out"] = news_dates()
    finders: dict[str, dict[str, Any]] = {
        "nothing": {"ner": None, "rules": False},
        "rules and capitals": {"ner": "capitals"},
        "spaCy alone": {"ner": "spacy", "rules": False},
        "spaCy and rules": {"ner": "spacy"},
        "default (spaCy, capitals, rules)": {"ner": "auto"},
    }
    print(f"entities in one piece at rate {args.rate}; the scorer is 'baseline'; ± is a 95 % interval (Wilson, half)")
    for name, options in finders.items():
        pruner = Distill(scorer="baseline", target_tokenizer=folder, **options)
        for group, rows_ in groups.items():
            hits, over, tokens, words = [], 0, 0, 0
            for _, text, spans in rows_:
                result = pruner.compress(text, args.rate, segments=False)
                hits += [survives(result.spans, a, b) for a, b, _ in spans]
                over += result.over_budget
                tokens += result.tokens
                words += result.original_tokens
            share, half = statistics.mean(hits), half_width(sum(hits), len(hits))
            print(
                f"{name:33} {group:18} {share:.3f} ± {half:.3f} of {len(hits):4d}; tokens kept {tokens / words:.2f}, "
                f"over the budget and said so {over}/{len(rows_)}",
                flush=True,
            )
