"""What a small cache keeps of a long one that was made before any question was known.

    python benchmarks/distilled.py MODEL --text book.txt.gz other.txt --contexts 12

A context is prose from one of the books with facts hidden in it. Each method reads it once and keeps a share of the
bytes. Then, on that cache: the divergence (KL, nats per token) from the whole cache on the words that really follow in
the book and on the whole cache's own answers, and how many questions it answers, of those that the whole cache
answers. Chance is below 1 in 1,000. All methods have equal bytes: those without a bias are given more entries. The
time that a method takes is in readings of the context by the stock model, in the same run (on a CPU, in seconds of it,
which other programs do not lengthen). Results go to a file line by line, from which a run that was killed goes on.

A model with a chat template is asked for numbers and names of cities; one without for a pass key, one a context.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import process_time
from typing import Any

import torch
from harness import table
from real import CITIES, FIRST, LAST, NAMES, NUMBERS
from torch import Tensor
from tqdm.auto import tqdm
from transformers import AutoTokenizer, DynamicCache

import distill
from distill import AdaKV, AttentionMatching, KeyDiff, KVzap, KVzip, PromptDistill, Random, SnapKV, StreamingLLM
from distill.distillation.document import DocumentCache, origin_of
from distill.distillation.scorer import read
from distill.distillation.trained import train_cache
from distill.evaluation.intervals import bootstrap, wilson
from distill.evaluation.prompting import Encoder, Prompt, chat
from distill.evaluation.tune.prompts import STORY, sentences_of
from distill.mini.passkey import FACT, QUESTION
from distill.patches.meter import cache_bytes, now
from distill.patches.policy import Policy

WORDS = 64  # of the text that follows, for the divergence


@dataclass
class Context:
    """A text to be read once, and what it is asked.

    Attributes:
        ids, follows: `(1, tokens)`, what is read, and what comes behind it in the book.
        head: tokens of the chat template before the text.
        questions: token ids `(1, tokens)` and the value of each.
        answers: by question, the whole cache's: token ids, log-probabilities `(tokens, vocabulary)`, right or not.
    """

    where: str
    ids: Tensor
    follows: Tensor
    head: int
    questions: list[tuple[Tensor, str]]
    seconds: float = 0.0
    whole_bytes: int = 0
    logs: Tensor | None = None
    answers: list[tuple[Tensor, Tensor, bool]] = field(default_factory=list)


def make(tokenizer: Any, path: Path, sentences: list[str], seed: int, length: int, facts: int) -> Context:
    """A context of about `length` tokens, from a random place of the book."""
    rng, encoder = random.Random(f"distilled {path.name} {seed}"), Encoder(tokenizer)
    talks = bool(getattr(tokenizer, "chat_template", None))
    asked: list[tuple[str, str, str]] = []
    kinds = [("number", pair) for pair in NUMBERS] + [("name", pair) for pair in NAMES]
    for city, (kind, (statement, question)) in zip(rng.sample(CITIES, facts), rng.sample(kinds, facts), strict=True):
        name = f"{rng.choice(FIRST)} {rng.choice(LAST)}"
        value = str(rng.randrange(10_000, 100_000)) if kind == "number" else name
        asked.append((statement.format(key=city, value=value), question.format(key=city), value))
    if not talks:
        key = str(rng.randrange(10_000, 100_000))
        asked = [(FACT.format(key=key), QUESTION, key)]
    start = rng.randrange(len(sentences) // 10, len(sentences) * 9 // 10)
    body, size = [statement for statement, _, _ in asked], 0
    size = sum(len(encoder.plain(part)) for part in body)
    stop = start
    while size < length and stop < len(sentences) - 20:
        size, stop = size + len(encoder.plain(sentences[stop])) + 1, stop + 1
    body = sentences[start:stop]
    for statement, _, _ in asked:
        body.insert(rng.randrange(len(body) + 1), statement)
    text, questions, head = " ".join(body), [], ""
    for _, question, value in asked:
        prompt = Prompt(text, f"\n\n{question}\n")
        if talks:
            prompt = chat(tokenizer, prompt)
            head = prompt.context[: prompt.context.index(text)]
        questions.append((torch.tensor([encoder.plain(prompt.question)]), value))
    follows = encoder.plain(" " + " ".join(sentences[stop : stop + 20]))[:WORDS]
    where = f"{path.name}, sentence {start:,}"
    ids = torch.tensor([encoder.encode(head + text)])
    return Context(where, ids, torch.tensor([follows]), len(encoder.encode(head)) if head else 0, questions)


def methods(tokenizer: Any, context: Context, share: float, model: Any, scorer: str | None) -> dict[str, Policy]:
    """The methods by name, all with the bytes of a share of the whole cache."""
    dim = getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads
    entry = 2 * dim * model.dtype.itemsize
    budget = share * entry / (entry + 4)  # what a bias of 4 bytes leaves
    chooser = KVzip.with_tokenizer(tokenizer, budget=budget, prefix=context.head)
    return {
        "AttentionMatching(KVzip)": AttentionMatching(chooser),
        "AttentionMatching(KVzip), all entries": AttentionMatching(chooser, carriers=0),
        "AttentionMatching(KVzip), own queries": AttentionMatching(chooser, queries="context"),
        "KVzip": chooser.with_budget(share),
        **(learned(share, model.config.num_hidden_layers, scorer) if scorer else {}),
        "AttentionMatching(AdaKV(SnapKV)), own queries": AttentionMatching(AdaKV(SnapKV(budget)), queries="context"),
        "AdaKV(SnapKV)": AdaKV(SnapKV(share)),
        "SnapKV": SnapKV(share),
        "KeyDiff": KeyDiff(share),
        "StreamingLLM": StreamingLLM(share),
        "Random": Random(share),
    }


def learned(share: float, depth: int, scorer: str) -> dict[str, Policy]:
    """The methods that need a scorer, and a control for the second: one set of tokens for all heads and layers."""
    between = PromptDistill(
        [depth // 2],
        [share],
        scoring="learned",
        scorer=scorer,
        pooling="max",
        aggregate=4,
        sinks=4,
        recent=16,
        cache_truncation_end=1,
    )
    return {
        "KVzap": KVzap(share, scorer),
        "PromptDistill(learned)": between,
        "PromptDistill(random)": replace(between, scoring="random"),
    }


class Asker:
    """A model that is asked on caches which stay as they are."""

    def __init__(self, model: Any, tokenizer: Any, new: int) -> None:
        self.model, self.tokenizer, self.new = model, tokenizer, new
        ends = model.generation_config.eos_token_id
        self.ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}

    def make(self, ids: Tensor, policy: Policy | None) -> tuple[Any, float]:
        """The cache of a context under a policy, and the seconds it took."""
        clock = process_time if self.model.device.type == "cpu" else now
        start = clock()
        cache = DynamicCache()
        self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1, policy=policy)
        return cache, clock() - start

    def trained(self, context: Context, small: Any, steps: int, seconds: float) -> tuple[Any, float]:
        """A small cache, taught what the whole one says; and the seconds of both."""
        origin = origin_of(small)
        known = DocumentCache.of(small, replace(origin, ids=context.ids, chat=bool(context.head)))
        start = process_time()
        with tempfile.TemporaryDirectory() as folder, torch.enable_grad():
            made = train_cache(self.model, self.tokenizer, known, folder, steps=steps)
        return made, seconds + process_time() - start

    def logs(self, cache: Any, ids: Tensor) -> Tensor:
        """Log-probabilities `(tokens, vocabulary)` of what follows each of the tokens."""
        out = self.model(ids, past_key_values=deepcopy(cache), use_cache=True, policy=None)
        return out.logits[0].float().log_softmax(-1)

    def answer(self, cache: Any, question: Tensor) -> Tensor:
        """Token ids `(1, tokens)` of the greedy answer."""
        cache, ids, found = deepcopy(cache), question, []
        for _ in range(self.new):
            out = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1, policy=None)
            ids = out.logits[:, -1].argmax(-1, keepdim=True)
            found.append(ids)
            if int(ids) in self.ends:
                break
        return torch.cat(found, dim=1)

    def right(self, answer: Tensor, value: str) -> bool:
        """Whether the answer contains the value."""
        return value in self.tokenizer.decode(answer[0], skip_special_tokens=True)

    def prepare(self, context: Context) -> None:
        """Notes what the whole cache says."""
        cache, first = self.make(context.ids, None)
        context.seconds = min(first, self.make(context.ids, None)[1])
        context.whole_bytes = cache_bytes(cache)
        context.logs = self.logs(cache, context.follows)
        for question, value in context.questions:
            answer = self.answer(cache, question)
            logs = self.logs(cache, torch.cat([question, answer[:, :-1]], dim=1))[-answer.shape[1] :]
            context.answers.append((answer, logs, self.right(answer, value)))

    def measure(self, context: Context, policy: Policy, steps: int = 0) -> dict[str, Any]:
        """What a method makes of a context; with `steps`, trained so long."""
        cache, seconds = self.make(context.ids, policy)
        if steps:
            cache, seconds = self.trained(context, cache, steps, seconds)
        assert context.logs is not None
        found: dict[str, Any] = {
            "seconds": seconds, "read": context.seconds, "bytes": cache_bytes(cache) / context.whole_bytes,
            "follows": divergence(context.logs, self.logs(cache, context.follows)), "answers": [], "right": [],
        }  # fmt: skip
        for (question, value), (answer, logs, right) in zip(context.questions, context.answers, strict=True):
            if right:
                given = self.logs(cache, torch.cat([question, answer[:, :-1]], dim=1))[-answer.shape[1] :]
                found["answers"].append(divergence(logs, given))
                found["right"].append(self.right(self.answer(cache, question), value))
        return found


def divergence(whole: Tensor, small: Tensor) -> float:
    """Mean KL of `small` from `whole`, both log-probabilities `(tokens, vocabulary)`, in nats."""
    return float((whole.exp() * (whole - small)).sum(-1).mean())


def report(found: dict[tuple[float, str], list[dict[str, Any]]]) -> str:
    """A Markdown table for each share."""
    parts = []
    for share in sorted({share for share, _ in found}, reverse=True):
        rows = []
        base = [entry["follows"] for entry in found.get((share, "KVzip"), [])]
        for (of, name), entries in found.items():
            if of != share:
                continue
            follows = [entry["follows"] for entry in entries]
            answers = [kl for entry in entries for kl in entry["answers"]]
            right = [one for entry in entries for one in entry["right"]]
            low, high = wilson(sum(right), max(len(right), 1))
            bounds = bootstrap(follows)
            rows.append([
                name,
                f"{statistics.mean(follows):.3f}", f"{bounds[0]:.3f} to {bounds[1]:.3f}",
                f"{statistics.mean(follows) / statistics.mean(base):.2f}" if base else "",
                f"{statistics.mean(answers):.3f}" if answers else "",
                f"{sum(right)}/{len(right)}", f"{low:.2f} to {high:.2f}",
                f"{statistics.mean(entry['bytes'] for entry in entries):.4f}",
                f"{statistics.median(entry['seconds'] / entry['read'] for entry in entries):.2f}",
            ])  # fmt: skip
        head = ["method", "KL", "95 %", "of KVzip's", "KL answers", "right", "95 %", "bytes", "readings"]
        parts.append(f"1/{round(1 / share)} of the bytes, {len(base)} contexts\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def picture(file: Path, found: dict[tuple[float, str], list[dict[str, Any]]]) -> None:
    """KL and right answers over bytes, a line for each method that was measured at two shares or more."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for name in dict.fromkeys(name for _, name in found):
        shares = sorted(share for share, of in found if of == name)
        if len(shares) < 2:
            continue
        rows = [found[share, name] for share in shares]
        answers = [[one for entry in entries for one in entry["right"]] for entries in rows]
        kl = [statistics.mean(entry["follows"] for entry in entries) for entries in rows]
        (line,) = left.plot(shares, kl, marker="o", label=name)
        right.plot(shares, [sum(one) / len(one) for one in answers], marker="o", color=line.get_color(), label=name)
    ticks = sorted({share for share, _ in found})
    for axis in (left, right):
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks, [f"1/{round(1 / share)}" for share in ticks])
        axis.set_xlabel("bytes of the whole cache")
        axis.grid(alpha=0.3)
    left.set(title="KL from the whole cache, nats a token", yscale="log")
    right.set(title="right answers, of the whole cache's", ylim=(-0.03, 1.03))
    right.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


def described(args: argparse.Namespace, context: Context, name: str, share: float) -> str:
    return json.dumps([args.model, args.dtype, context.where, context.ids.shape[1], name, share])


def contexts(tokenizer: Any, books: list[Path], count: int, length: int, facts: int) -> Iterator[Context]:
    """As many contexts, from the books in turn."""
    texts = {path: sentences_of(" ".join(read(path).split())) for path in books}
    for seed in range(count):
        path = books[seed % len(books)]
        yield make(tokenizer, path, texts[path], seed, length, facts)


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a checkpoint, or the name of a small model that ships (llama)")
    parser.add_argument("--text", type=Path, nargs="+", default=[STORY], help="books to take contexts from")
    parser.add_argument("--contexts", type=int, default=12)
    parser.add_argument("--length", type=int, default=600, help="tokens of a context, about")
    parser.add_argument("--facts", type=int, default=6, help="hidden in a context, up to 10")
    parser.add_argument("--shares", type=float, nargs="+", default=[1 / 8, 1 / 16], help="of the whole cache's bytes")
    parser.add_argument("--methods", nargs="*", help="only these rows")
    parser.add_argument("--scorer", help="file of `python -m distill.distillation.scorer`, for KVzap")
    parser.add_argument("--train", type=int, metavar="STEPS", help="a row for a cache that is trained so long")
    parser.add_argument("--new", type=int, default=24, help="tokens of an answer, at most")
    parser.add_argument("--output", type=Path, default=Path("outputs/distilled.jsonl"))
    parser.add_argument("--known", action="store_true", help="measure nothing: report what --output holds")
    parser.add_argument("--picture", type=Path, help="draw KL and right answers over bytes (PNG)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.model in distill.mini.names():
        model, tokenizer = distill.mini(args.model)
    else:
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        model = distill.load(args.model, policy=None, dtype=args.dtype).eval()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    lines = args.output.read_text().splitlines() if args.output.exists() else []
    known = {entry["key"]: entry for entry in map(json.loads, lines)}
    asker, found = Asker(model, tokenizer, args.new), {}
    with args.output.open("a") as file:
        made = contexts(tokenizer, args.text, args.contexts, args.length, args.facts)
        for context in tqdm(list(made), desc="contexts"):
            for share in args.shares:
                rows = methods(tokenizer, context, share, model, args.scorer)
                if args.train:
                    rows[f"AttentionMatching(KVzip), {args.train} steps"] = rows["AttentionMatching(KVzip)"]
                for name, policy in rows.items():
                    key = described(args, context, name, share)
                    if (args.methods and name not in args.methods) or (args.known and key not in known):
                        continue
                    if key not in known:
                        if context.logs is None:
                            asker.prepare(context)
                        known[key] = {"key": key} | asker.measure(
                            context, policy, args.train if name.endswith(" steps") else 0
                        )
                        file.write(json.dumps(known[key]) + "\n")
                        file.flush()
                    found.setdefault((share, name), []).append(known[key])
    print(report(found))
    if args.picture:
        picture(args.picture, found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
