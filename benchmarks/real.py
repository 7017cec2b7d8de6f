"""Answers of a pretrained model under several methods, on facts hidden in prose: what each keeps, and what it costs.

    python benchmarks/real.py MODEL --samples 48 --policy tuned/policy.json

Wordings, names and numbers are not those that `distill tune` uses. Right is an answer that contains the value. All
methods are asked what the stock model answers; a row says how many of these one answers too, with a 95 % interval.
Chance is below 1 in 1,000 for each kind. Results go to a file line by line, from which a run that was killed goes on.

With `--xquad FILE` the prompts are paragraphs of Wikipedia and one of their questions; then all methods are asked all
of them, and a row is the share of all that it answers (a short value may stand in a wrong answer, too).
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
from pathlib import Path
from typing import Any

import torch
from harness import megabytes, table
from tqdm.auto import tqdm
from transformers import AutoTokenizer

import distill
from distill.evaluation.generation import Decoding, Generator
from distill.evaluation.intervals import wilson
from distill.evaluation.prompting import Encoder, Prompt, chat
from distill.evaluation.synthetic.fit import largest_size
from distill.evaluation.tune.prompts import STORY, sentences_of
from distill.patches.grammar import parse_method, read_policy

# statement and question; the value comes first, last, or in the middle
NUMBERS = [
    ("The special magic number for {key} is {value}.", "What is the special magic number for {key}?"),
    ("{value} is the number that opens the gate of {key}.", "Which number opens the gate of {key}?"),
    ("In {key}, the emergency line is {value} at all hours.", "What is the number of the emergency line in {key}?"),
    ("The invoice for {key} carries the number {value}.", "What number does the invoice for {key} carry?"),
    ("Note: ticket {value} has been issued to {key}.", "Which ticket has been issued to {key}?"),
]  # fmt: skip
NAMES = [
    ("The new mayor of {key} is {value}.", "Who is the new mayor of {key}?"),
    ("{value} was born in {key}.", "Who was born in {key}?"),
    ("The bridge in {key} was built by {value}.", "Who built the bridge in {key}?"),
    ("In {key}, {value} runs the bakery.", "Who runs the bakery in {key}?"),
    ("The best doctor in {key} is called {value}.", "What is the best doctor in {key} called?"),
]
PAIRS = [
    ('{{"city": "{key}", "password": "{value}"}}', 'What is the "password" of "{key}"?'),
    ('{{"{key}": "{value}"}}', 'What is the value of the key "{key}"?'),
    ('"{key}": {{"id": "{value}", "active": true}}', 'What is the "id" of "{key}"?'),
    ('{{"id": "{value}", "place": "{key}"}}', 'Which "id" belongs to the place "{key}"?'),
    ('"{key}" = "{value}"', 'What is "{key}" equal to?'),
]
CITIES = [
    "Lisbon",
    "Cairo",
    "Oslo",
    "Lima",
    "Quito",
    "Dakar",
    "Hanoi",
    "Perth",
    "Turin",
    "Osaka",
    "Havana",
    "Bergen",
    "Malaga",
    "Nairobi",
    "Calgary",
    "Dresden",
]
FIRST = [
    "Agnes",
    "Bertram",
    "Cecilia",
    "Dominic",
    "Eleanor",
    "Florian",
    "Henrietta",
    "Isidor",
    "Josephine",
    "Konrad",
    "Leonora",
    "Matthias",
    "Ottilie",
]
LAST = [
    "Pemberton",
    "Quist",
    "Rosenthal",
    "Sandoval",
    "Thackeray",
    "Underhill",
    "Valentin",
    "Whitlock",
    "Yardley",
    "Zimmer",
    "Ashcombe",
    "Brackett",
]
KINDS = {"numbers": NUMBERS, "names": NAMES, "json": PAIRS}

METHODS = ["snapkv", "gemfilter", "fastkv", "h2o", "kvzip"]


def sample(tokenizer: Any, sentences: list[str], seed: int, length: int) -> tuple[Prompt, str, str]:
    """A prompt of at most `length` tokens, its answer, and its kind."""
    rng = random.Random(f"real {seed}")
    kind = list(KINDS)[seed % 3]
    statement, question = KINDS[kind][seed // 3 % 5]
    key, depth, start = rng.choice(CITIES), rng.random(), rng.randrange(len(sentences))
    if kind == "names":
        value = f"{rng.choice(FIRST)} {rng.choice(LAST)}"
    else:
        value = (
            str(rng.randrange(10_000, 100_000))
            if kind == "numbers"
            else f"{rng.choice(LAST).lower()}{rng.randrange(100, 1000)}"
        )

    def make(size: int) -> Prompt:
        body = [sentences[(start + i) % len(sentences)] for i in range(size)]
        body.insert(int(depth * (size + 1)), statement.format(key=key, value=value))
        prompt = Prompt(" ".join(body), f"\n\n{question.format(key=key)}\n")
        return chat(tokenizer, prompt) if getattr(tokenizer, "chat_template", None) else prompt

    size = largest_size(
        lambda n: len(tokenizer(make(n).text, add_special_tokens=False, verbose=False).input_ids), length, 1, 1
    )
    return make(size), value, kind


def paragraphs(tokenizer: Any, articles: list[Any], seed: int, length: int) -> tuple[Prompt, str, str]:
    """As `sample`: paragraphs of different articles, one of which answers the question, in a random order."""
    rng = random.Random(f"xquad {seed}")
    chosen = rng.sample(articles, len(articles))
    asked, *others = (rng.choice(article["paragraphs"]) for article in chosen)
    found = rng.choice(asked["qas"])
    order = [rng.random() for _ in chosen]

    def make(size: int) -> Prompt:
        body = sorted(zip(order, [asked, *others][:size], strict=False), key=lambda pair: pair[0])
        question = f"\n\nAnswer with a few words of the text. {found['question']}\n"
        prompt = Prompt("\n\n".join(paragraph["context"] for _, paragraph in body), question)
        return chat(tokenizer, prompt) if getattr(tokenizer, "chat_template", None) else prompt

    size = largest_size(
        lambda n: len(tokenizer(make(n).text, add_special_tokens=False, verbose=False).input_ids),
        length,
        1,
        1,
        most=len(chosen),
    )
    return make(size), found["answers"][0]["text"], "xquad"


def methods(args: argparse.Namespace, config: Any) -> dict[str, Any]:
    """The policies of the table, by name."""
    found: dict[str, Any] = {"stock": None}
    suggested = distill.suggest(config).policy
    if suggested is not None:
        found["distill.suggest"] = suggested
    for path in args.policy:
        found[f"tuned, {path.parent.name}"] = read_policy(str(path))
    layer = round(0.4 * config.num_hidden_layers)
    for share in args.shares:
        found[f"paper, 1/{round(1 / share)}"] = distill.PromptDistill([layer], [share])
        for name in args.methods:
            extra = {"layer": layer} if name == "gemfilter" else {"tsp_layer": layer} if name == "fastkv" else {}
            found[f"{name}, 1/{round(1 / share)}"] = distill.policy(name, **extra).with_budget(share)
    for text in args.extra:
        found[text] = parse_method(text)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a checkpoint")
    parser.add_argument("--policy", type=Path, nargs="*", default=[], help="policy.json of `distill tune`")
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="number of the first sample, to take others")
    parser.add_argument("--length", type=int, default=1000)
    parser.add_argument("--shares", type=float, nargs="*", default=[1 / 8], help="budgets of the methods compared")
    parser.add_argument(
        "--methods", nargs="*", default=METHODS, help=f"beside the paper's setting (default: {METHODS})"
    )
    parser.add_argument("--extra", nargs="*", default=[], help="further methods, NAME:argument=value")
    parser.add_argument("--text", type=Path, default=STORY, help="prose to hide facts in")
    parser.add_argument("--xquad", type=Path, help="ask questions of this file (.json.gz) in place of hidden facts")
    parser.add_argument("--new", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--output", type=Path, default=Path("outputs/real.jsonl"))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = distill.load(args.model, policy=None, dtype=args.dtype).eval()
    seeds = range(args.first, args.first + args.samples)
    fold = str.lower if args.xquad else str  # whether capital letters matter
    if args.xquad:
        articles = json.loads(gzip.decompress(args.xquad.read_bytes()))["data"]
        samples = {seed: paragraphs(tokenizer, articles, seed, args.length) for seed in seeds}
    else:
        sentences = sentences_of(args.text.read_text())
        samples = {seed: sample(tokenizer, sentences, seed, args.length) for seed in seeds}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    known = {}
    if args.output.exists():
        for line in args.output.read_text().splitlines():
            entry = json.loads(line)
            known[entry["key"]] = entry
    chosen = methods(args, model.config)
    answers: dict[str, dict[int, dict[str, Any]]] = {}
    asked = list(seeds)
    with args.output.open("a") as file:
        for name, policy in chosen.items():
            generate = Generator(model, Encoder(tokenizer), policy)
            for seed in tqdm(asked, desc=name):
                prompt, value, _ = samples[seed]
                described = None if policy is None else policy.to_dict()
                key = json.dumps([args.model, args.length, args.dtype, str(args.xquad or args.text), seed, described])
                if key not in known:
                    made = generate(prompt, args.new, Decoding())
                    known[key] = {
                        "key": key, "text": made.text, "right": fold(value) in fold(made.text),
                        "first": made.ttft_seconds,
                        "bytes": made.cache_bytes,
                    }  # fmt: skip
                    file.write(json.dumps(known[key]) + "\n")
                    file.flush()
                answers.setdefault(name, {})[seed] = known[key]
            if policy is None and not args.xquad:
                asked = [seed for seed in asked if answers[name][seed]["right"]]
    print(report(answers, chosen, samples, args.length, model.config))
    return 0


def report(
    answers: dict[str, dict[int, dict[str, Any]]], chosen: dict[str, Any], samples: Any, length: int, config: Any
) -> str:
    """A Markdown table, a method a row."""
    stock, rows = answers["stock"], []
    everything = all(len(given) == len(stock) for given in answers.values())
    wanted = [i for i, answer in stock.items() if answer["right"] or everything]
    for name, given in answers.items():
        kept = sum(given[i]["right"] for i in wanted)
        low, high = wilson(kept, max(1, len(wanted)))
        kinds = [kind for kind in [*KINDS, "xquad"] if any(samples[i][2] == kind for i in stock)]
        of_kind = [[given[i]["right"] for i in wanted if samples[i][2] == kind] for kind in kinds]
        by_kind = [f"{sum(found)}/{len(found)}" for found in of_kind]
        reaching = [length] if chosen[name] is None else chosen[name].tokens_reaching(length, config)
        rows.append([
            name, f"{kept}/{len(wanted)}", f"{low:.2f} to {high:.2f}", *by_kind,
            f"{length * len(reaching) / sum(reaching):.2f}x",
            f"{statistics.median(stock[i]['first'] / given[i]['first'] for i in wanted):.2f}x",
            megabytes(statistics.mean(given[i]["bytes"] for i in wanted)),
        ])  # fmt: skip
    head = ["method", "right" if everything else "of stock's", "interval", *kinds, "bound", "first token", "cache MB"]
    right = sum(answer["right"] for answer in stock.values())
    return f"n = {len(stock)}, stock answers {right}\n\n{table(head, rows)}"


if __name__ == "__main__":
    raise SystemExit(main())
