"""Ways of making a model smaller, at equal bytes: perplexity on two texts, facts found, and what the file weighs.

    python benchmarks/shrink.py MODEL --calibration BOOK --texts wikitext=valid.txt.gz book=OTHER.txt.gz

Every model is stored in one dtype, saved, and loaded again before it is measured; bytes are those of its file.
Targets are shares of the bytes of the original, stored the same way. int8 and int4 (NF4) are those of
bitsandbytes. None of the texts that are measured is calibrated on. Facts hide in prose of 512 tokens, as in
`benchmarks/real.py`; right is an answer that contains the value, chance is below 1 in 1,000. All models are
asked what the original answers, except those whose perplexity is so high that it says nothing (`HOPELESS`).
`-recovered` ways are taught by the original on the calibration text: factors, or norms of int8 and int4. With
`--kv-shares`, K and V projections alone get ranks with which a `LatentCache` holds so large a share of the KV
bytes. Results go to a file line by line, from which a run that was killed goes on.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import table
from real import sample
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

import distill
from distill.compression.calibration import windows
from distill.compression.low_rank import embedding_factorization, head_moments, kv_low_rank, low_rank
from distill.compression.measure import EMBEDDING, measured, planner
from distill.compression.perplexity import perplexity
from distill.compression.quantize import quantization
from distill.compression.receipts import weigh
from distill.compression.recover import Recipe, recover
from distill.compression.spec import spec_of
from distill.evaluation.generation import Decoding, Generator
from distill.evaluation.intervals import wilson
from distill.evaluation.prompting import Encoder
from distill.evaluation.tune.prompts import STORY, sentences_of
from distill.training import RunFolder

#: facts are not asked for where the perplexity is so many times the original's
HOPELESS = 4.0
TAUGHT = "-recovered"
WAYS = tuple(name + end for name in ("plain", "whitened", "adaptive", "hybrid") for end in ("", TAUGHT))


def read(path: Path) -> str:
    return gzip.open(path, "rt").read() if path.suffix == ".gz" else path.read_text()


class Bench:
    """The model, the texts, and what has been measured."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.dtype = args, getattr(torch, args.dtype)
        self.tokenizer = AutoTokenizer.from_pretrained(args.model)
        text = read(args.calibration)
        ids = self.tokenizer(text[args.skip :], verbose=False).input_ids
        self.inputs = windows(ids, args.length, args.windows)
        # recovery reads more of the same text, in windows that are half as long
        self.reading = windows(ids, args.length // 2, min(args.recover_steps, 2 * len(ids) // args.length))
        self.texts = {}
        for given in args.texts:
            name, _, path = given.partition("=")
            part = read(Path(path))[args.skip if name != "wikitext" else 0 :][: 8 * args.tokens]
            self.texts[name] = (self.tokenizer(part, verbose=False).input_ids, len(part.split()))
        sentences = sentences_of(STORY.read_text())
        self.samples = [sample(self.tokenizer, sentences, seed, 512) for seed in range(args.samples)]
        self.stock: dict[str, Any] | None = None
        self.errors: dict[bool, dict[str, list[float]]] = {}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        lines = args.output.read_text().splitlines() if args.output.exists() else []
        self.known = {entry["key"]: entry for entry in map(json.loads, lines)}

    def original(self) -> Any:
        return distill.load(self.args.model, policy=None, dtype=self.dtype).eval()

    def key(self, name: str, share: float | None) -> str:
        args = self.args
        asked = [args.model, args.dtype, str(args.calibration), args.windows, args.length, args.tokens, args.samples]
        rate = args.norms_rate if name.startswith("int") else args.rate
        taught = [args.recover_steps, rate] if name.endswith(TAUGHT) else []
        return json.dumps([*asked, args.texts, name, share, *taught])

    def row(self, name: str, share: float | None, make: Callable[[], Any]) -> dict[str, Any]:
        """What has been measured of a model, now or in an earlier run."""
        key = self.key(name, share)
        if key not in self.known:
            began = time.perf_counter()
            try:
                model = make()
            except ValueError as error:
                entry = {"key": key, "name": name, "share": share, "refused": str(error)}
            else:
                seconds = time.perf_counter() - began
                entry = {"key": key, "name": name, "share": share, "seconds": seconds, **self.measure(model)}
            self.known[key] = entry
            with self.args.output.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            print({k: v for k, v in entry.items() if k != "key"}, flush=True)
        return self.known[key]

    def measure(self, model: Any) -> dict[str, Any]:
        """Saves the model, loads it again, and measures that."""
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            del model
            size = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
            again = AutoModelForCausalLM.from_pretrained(folder, dtype=self.dtype).eval()
            if getattr(again, "quantization_method", None) is not None:
                again = again.dequantize().to(self.dtype)  # the weights as stored; CPU kernels for them are slow
            shutil.rmtree(folder)
            Path(folder).mkdir()
        found: dict[str, Any] = {"bytes": size, "kv": weigh(again).latent_kv_bytes}
        for name, (ids, words) in self.texts.items():
            measured_ = perplexity(again, ids, words, self.args.length, limit=self.args.tokens)
            found[name] = {"token": measured_.token, "error": measured_.error, "tokens": measured_.tokens}
        first = next(iter(self.texts))
        asked = range(len(self.samples)) if self.stock is None else self.stock["right"]
        if self.stock is not None and found[first]["token"] > HOPELESS * self.stock[first]["token"]:
            return found  # facts are not asked for
        generate = Generator(again, Encoder(self.tokenizer), None)
        found["asked"] = len(asked)
        found["right"] = [
            number
            for number in tqdm(asked, desc="facts", leave=False)
            if self.samples[number][1] in generate(self.samples[number][0], 16, Decoding()).text
        ]
        return found

    def shrunk(self, way: str, share: float) -> Any:
        """A model with factors, whose file has at most so large a share of the bytes."""
        model, kind = self.original(), way.removesuffix(TAUGHT)
        embedding = kind == "hybrid"
        errors = None
        if kind in ("adaptive", "hybrid"):
            if embedding not in self.errors:
                self.errors[embedding] = measured(model, self.inputs, embedding)
            errors = self.errors[embedding]
        made = planner(model, self.dtype.itemsize, errors, embedding)
        target = int(share * made.plan({}).bytes)
        plan = made.adaptive(target) if errors else made.uniform(target)
        print(f"{way} at {share}\n{plan.table()}", flush=True)
        ranks = dict(plan.ranks)
        rank = ranks.pop(EMBEDDING, None)
        if rank is not None:
            embedding_factorization(model, rank, head_moments(model, self.inputs))
        low_rank(model, ranks, None if kind == "plain" else self.inputs)
        model.config.compression = spec_of(model)
        return self.recovered(model, self.args.rate) if way.endswith(TAUGHT) else model

    def recovered(self, model: Any, rate: float) -> Any:
        """The model, taught by the original."""
        with tempfile.TemporaryDirectory() as folder:
            recover(
                model,
                self.original().to(model.device),
                self.reading,
                self.args.recover_steps,
                RunFolder(folder, {}),
                Recipe(rate=rate),
            )
        return model

    def smaller_cache(self, share: float) -> Any:
        """A model whose K and V projections are factors."""
        model = self.original()
        kv_low_rank(model, share, self.inputs)
        model.config.compression = spec_of(model)
        return model

    def quantized(self, bits: int) -> Any:
        """bitsandbytes' weights of the linear layers inside the decoder; the embedding and the head stay whole."""
        settings = quantization(bits, self.dtype)
        return AutoModelForCausalLM.from_pretrained(self.args.model, quantization_config=settings, dtype=self.dtype)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder of a checkpoint")
    parser.add_argument("--calibration", type=Path, help="text, or .gz")
    parser.add_argument("--texts", nargs="+", metavar="NAME=FILE", help="to measure perplexity on")
    parser.add_argument("--arithmetic", action="store_true", help="print how 1,000x comes about, and nothing else")
    parser.add_argument("--shares", type=float, nargs="*", default=[0.9, 0.8, 0.6, 0.4], help="of the bytes")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=("plain", "whitened", "adaptive"))
    parser.add_argument("--windows", type=int, default=16, help="of calibration text (default %(default)s)")
    parser.add_argument("--length", type=int, default=512, help="of a window (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=8192, help="measured, of each text (default %(default)s)")
    parser.add_argument("--samples", type=int, default=48, help="facts (default %(default)s)")
    parser.add_argument("--skip", type=int, default=5000, help="characters of books that are left out: their front")
    parser.add_argument("--recover-steps", type=int, default=300, help="of distillation, for `-recovered`")
    parser.add_argument("--rate", type=float, default=1e-4, help="its learning rate (default %(default)s)")
    parser.add_argument("--norms-rate", type=float, help="of int8's and int4's norms (default: not taught)")
    parser.add_argument("--kv-shares", type=float, nargs="*", default=[], help="of the KV bytes, in a LatentCache")
    parser.add_argument("--bits", type=int, nargs="*", choices=(8, 4), default=[8, 4])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--output", type=Path, default=Path("outputs/shrink.jsonl"))
    args = parser.parse_args()
    if args.arithmetic:
        print(arithmetic())
        return 0
    if None in (args.model, args.calibration, args.texts):
        parser.error("model, --calibration and --texts are needed")
    bench = Bench(args)
    rows = [bench.row("original", None, bench.original)]
    bench.stock = rows[0]
    for bits in args.bits:
        rows.append(bench.row(f"int{bits}", None, lambda bits=bits: bench.quantized(bits)))
        if args.norms_rate:
            taught = lambda bits=bits: bench.recovered(bench.quantized(bits).eval(), args.norms_rate)  # noqa: E731
            rows.append(bench.row(f"int{bits}{TAUGHT}", None, taught))
    for share in args.shares:
        rows += [bench.row(way, share, lambda way=way, share=share: bench.shrunk(way, share)) for way in args.ways]
    rows += [bench.row("K and V", share, lambda share=share: bench.smaller_cache(share)) for share in args.kv_shares]
    print(report(rows, list(bench.texts)))
    return 0


def arithmetic(rank: int = 64, embedding_rank: int = 77, sparsity: float = 0.99) -> str:
    """GPT-2's 124 million weights: ratios of some of its tensors, their products, and the ratio of the file."""
    vocabulary, context, width, depth = 50257, 1024, 768, 12
    shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    table_, linear = vocabulary * width, depth * sum(a * b for a, b in shapes)
    rest = context * width + depth * (sum(b for _, b in shapes) + 4 * width) + 2 * width
    table_after, linear_after = embedding_rank * (vocabulary + width), depth * rank * sum(a + b for a, b in shapes)
    whole, after = table_ + linear + rest, table_after + linear_after + rest
    one, other = table_ / table_after, linear / linear_after
    return "\n".join([
        f"weights {whole:,}, after {after:,}: {whole / after:.1f}x, the ratio of the file",
        f"embedding at rank {embedding_rank}: {one:.1f}x, of {table_ / whole:.0%} of the weights",
        f"linear layers at rank {rank}: {other:.1f}x",
        f"the two multiplied: {one * other:.0f}x, of nothing",
        f"and by {1 / (1 - sparsity):.0f}x for {sparsity:.0%} zeros: {one * other / (1 - sparsity):,.0f}x, same file",
    ])  # fmt: skip


def report(rows: list[dict[str, Any]], texts: list[str]) -> str:
    """A Markdown table, a model a row."""
    whole, found = rows[0]["bytes"], []
    for row in rows:
        target = "-" if row["share"] is None else f"{row['share']:g}"
        target = f"KV {target}" if row["name"] == "K and V" else target
        if "refused" in row:
            found.append([row["name"], target, "refused", *["-"] * (len(texts) + 3)])
            continue
        right, asked = (len(row["right"]), row["asked"]) if "right" in row else (None, 0)
        low, high = (0.0, 0.0) if right is None else wilson(right, asked)
        found.append([
            row["name"], target, f"{row['bytes'] / 1e6:.1f}", f"{row['bytes'] / whole:.3f}",
            *(f"{row[name]['token']:.2f}" for name in texts),
            *(("-", "-") if right is None else (f"{right}/{asked}", f"{low:.2f} to {high:.2f}")),
        ])  # fmt: skip
    head = ["way", "target", "MB", "of bytes", *(f"perplexity, {name}" for name in texts), "facts", "95 %"]
    counted = ", ".join(f"{name}: {rows[0][name]['tokens']:,} tokens" for name in texts)
    asked = f"facts: the original is asked {rows[0]['asked']}, the others what it answers"
    return f"{counted}; {asked}\n\n{table(head, found)}"


if __name__ == "__main__":
    raise SystemExit(main())
