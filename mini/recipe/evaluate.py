"""What a small model can do, and how much dropping tokens hurts it:

    python -m distill.mini.recipe.evaluate --arch llama skills language layers sensitivity

Prints tables in Markdown and, with `--out`, writes them and pictures there. The text is held out from training, and no
training task asked for these words, names and values. Answers are greedy continuations, right if they begin with the
whole value. The intervals of `sensitivity` are Wilson's, 95 %.
"""

from __future__ import annotations

import argparse
import bz2
import json
import lzma
from collections.abc import Callable, Sequence
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from typing import Any

from tqdm import tqdm

from distill.baselines import TOVA, GemFilter, SnapKV, StreamingLLM
from distill.evaluation.heatmap import grid, write_png
from distill.evaluation.intervals import wilson
from distill.mini import FOLDER, SELECTION_LAYER, SETTINGS, SOFTMAX, names, path, tokenizer_of
from distill.mini.passkey import share_of
from distill.mini.recipe import books
from distill.mini.recipe.measure import bits_per_byte, maker
from distill.mini.recipe.tasks import TASKS, is_right, prompt
from distill.models import PromptDistill, load
from distill.patches.policy import Policy

PolicyOf = Callable[[int], Policy | None]
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
OTHER = BUDGETED = 2048  # length of the prompts in other prose, and of those that are cut down


def distilled(layer: int, share: float, **options: Any) -> PolicyOf:
    """PromptDistill after `layer`; a random choice is another one for every sample."""
    if options.get("scoring") == "random":
        return lambda seed: PromptDistill([layer], [share], seed=seed, **options)
    policy = PromptDistill([layer], [share], **options)
    return lambda seed: policy


class Bench:
    """A model, how many prompts a cell has (half as many in `depths` and `layers`), and where pictures go."""

    def __init__(self, folder: Path, samples: int, split: str, out: Path | None) -> None:
        if samples < 1:
            raise ValueError(f"samples: got {samples}; allowed are integers from 1")
        self.samples, self.split, self.out = samples, split, out
        self.model = load(folder).eval()  # in the precision that ships, bfloat16
        self.tokenizer = tokenizer_of(folder)
        self.label = f"mini-{folder.name}" if folder.parent == FOLDER else str(folder)
        self.results: dict[str, Any] = {}

    def right(
        self, task: str, length: int, policy: PolicyOf, samples: int, depth: float | None = None,
        split: str | None = None,
    ) -> int:  # fmt: skip
        """How many of `samples` prompts are answered right; without a `depth`, theirs are spread evenly.

        Raises:
            ValueError: a length that the model cannot read.
        """
        longest = self.model.config.max_position_embeddings
        if length > longest:
            raise ValueError(f"length: got {length}; allowed are up to {longest}, what the model can read")
        source = maker(self.tokenizer, split or self.split, seed=length)
        found = 0
        for i in range(samples):
            at = (i + 0.5) / samples if depth is None else depth
            asked = prompt(source, task, length, at)
            with self.model.using(policy(i)):
                found += is_right(self.model, self.tokenizer, asked)
        return found

    def skills(self, lengths: Sequence[int], tasks: Sequence[str]) -> str:
        """Accuracy by skill and length, and in other prose."""
        rows, cells = [], {}
        for task in tqdm(tasks, desc="skills", leave=False):
            row = [self.right(task, length, lambda seed: None, self.samples) for length in lengths]
            row.append(self.right(task, OTHER, lambda seed: None, self.samples, split="other"))
            cells[task] = dict(zip((*map(str, lengths), "other"), row, strict=True))
            rows.append([task, TASKS[task].chance, *(f"{count / self.samples:.3f}" for count in row)])
        self.results["skills"] = {"n": self.samples, "right": cells}
        title = f"Accuracy by skill and length (n = {self.samples}, `{self.split}` books; last: `other`, {OTHER})"
        return table(title, ["task", "chance", *map(str, lengths), "other"], rows)

    def depths(self, lengths: Sequence[int], tasks: Sequence[str]) -> str:
        """Accuracy by depth and length, as pictures too."""
        rows, each = [], max(1, self.samples // 2)
        for task in tasks:
            scored = self._by_depth(task, lengths, each)
            columns, depths, values = grid(scored)
            rows += [[task, f"{d} %", *(f"{v:.0f}" for v in row)] for d, row in zip(depths, values, strict=True)]
            found = {"n": each, "lengths": columns, "depths": depths, "percent": values}
            self.results.setdefault("depths", {})[task] = found
            if self.out:
                write_png(scored, self.out / f"depths-{task.replace(' ', '-')}.png")
        title = f"Accuracy (%) by depth (0: first, 100: last) and length (n = {each} a cell)"
        return table(title, ["task", "depth", *map(str, sorted(lengths))], rows)

    def _by_depth(self, task: str, lengths: Sequence[int], each: int) -> dict[str, Any]:
        """The samples of a task with their lengths and depths, as `distill.evaluation` keeps them."""
        samples: dict[str, float] = {}
        groups: dict[str, dict[str, int]] = {}
        for length in tqdm(lengths, desc=f"depths of {task}", leave=False):
            for depth in DEPTHS:
                key = f"{length}-{depth}"
                samples[key] = self.right(task, length, lambda s: None, each, depth) / each
                groups[key] = {"length": length, "depth": round(100 * depth)}
        header = {"label": self.label, "budget": None, "protocol": f"{self.split} books", "task": task}
        score = 100 * sum(samples.values()) / len(samples)
        return {"samples": samples, "groups": groups, "header": header, "score": score, "n": each * len(samples)}

    def language(self) -> str:
        """Bits per byte of windows of the books, beside what general compressors make of the whole books."""
        import brotli

        rows = []
        for split in ("validation", "test", "other"):
            text = "\n\n".join(books.read(split).values()).encode()
            packed = [lzma.compress(text, preset=9), brotli.compress(text, quality=11), bz2.compress(text, 9)]
            bits = bits_per_byte(self.model, self.tokenizer, split, length=2048, windows=32)
            rows.append([split, f"{bits:.3f}", *(f"{len(data) * 8 / len(text):.3f}" for data in packed)])
            self.results.setdefault("language", {})[split] = bits
        title = "Bits per byte (second halves of 32 windows of 2,048 tokens; compressors: whole books)"
        return table(title, ["books", self.label, "xz -9", "brotli -q 11", "bzip2 -9"], rows)

    def layers(self, task: str, share: float) -> str:
        """Accuracy when tokens are dropped after each layer."""
        kinds = {"paper": SETTINGS, "softmax": SETTINGS | SOFTMAX, "random": SETTINGS | {"scoring": "random"}}
        last = self.model.config.num_hidden_layers - 1
        each = max(1, self.samples // 2)
        rows = []
        for layer in tqdm(range(last), desc="layers", leave=False):
            found = [
                self.right(
                    task, BUDGETED, distilled(layer, share, **options | {"cache_truncation_end": truncated}), each
                )
                / each
                for truncated in (0, 1)
                for options in kinds.values()
            ]
            rows.append([str(layer), *(f"{v:.2f}" for v in found)])
            self.results.setdefault("layers", {"n": each}).setdefault(task, {})[layer] = found
        head = [f"{kind}, {'truncated' if t else 'full caches'}" for t in (0, 1) for kind in kinds]
        title = f"{task}, {BUDGETED} tokens, {share:.4g} of them kept after one layer (n = {each} a cell)"
        return table(title, ["layer", *head], rows)

    def sensitivity(self, task: str, shares: Sequence[float]) -> str:
        """Methods against budgets."""
        control = {"scoring": "random"}
        methods: dict[str, Callable[[float], PolicyOf]] = {
            "PromptDistill": lambda s: distilled(SELECTION_LAYER, s, **SETTINGS),
            "PromptDistill, softmax": lambda s: distilled(SELECTION_LAYER, s, **SETTINGS | SOFTMAX),
            "PromptDistill, nothing kept always": lambda s: distilled(SELECTION_LAYER, s, cache_truncation_end=1),
            "random tokens": lambda s: distilled(SELECTION_LAYER, s, **SETTINGS | control),
            "random tokens, full early caches": lambda s: distilled(
                SELECTION_LAYER, s, **SETTINGS | control | {"cache_truncation_end": 0}
            ),
            "GemFilter": lambda s: lambda seed: GemFilter(s, layer=SELECTION_LAYER),
            "SnapKV": lambda s: lambda seed: SnapKV(s),
            "TOVA": lambda s: lambda seed: TOVA(s),
            "StreamingLLM": lambda s: lambda seed: StreamingLLM(s),
        }
        full = self.right(task, BUDGETED, lambda seed: None, self.samples)
        rows = [["all tokens", _cell(full, self.samples), *[""] * (len(shares) - 1)]]
        self.results.setdefault("sensitivity", {"n": self.samples})[task] = {"full": full / self.samples}
        for name, method in tqdm(methods.items(), desc=f"methods, {task}", leave=False):
            found = [self.right(task, BUDGETED, method(share), self.samples) for share in shares]
            rows.append([name, *(_cell(count, self.samples) for count in found)])
            self.results["sensitivity"][task][name] = [count / self.samples for count in found]
        head = ["method", *(str(Fraction(share).limit_denominator(1000)) for share in shares)]
        return table(f"{task}, {BUDGETED} tokens, share kept (n = {self.samples} a cell)", head, rows)


def _cell(count: int, samples: int) -> str:
    low, high = wilson(count, samples)
    return f"{count / samples:.3f} [{low:.2f}, {high:.2f}]"


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table under its title."""
    lines = [f"**{title}**", "", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), ""])


#: the options that a part reads; another one would change nothing
OPTIONS = {
    "skills": ("samples", "lengths", "tasks", "split"), "depths": ("samples", "lengths", "tasks", "split"),
    "language": (), "layers": ("samples", "tasks", "split"), "sensitivity": ("samples", "shares", "tasks", "split"),
}  # fmt: skip
DEFAULTS = {
    "samples": 200,
    "lengths": [512, 1024, 2048, 4096],
    "shares": [1 / 4, 1 / 8, 1 / 16, 1 / 32],
    "split": "test",
}


def parse() -> argparse.Namespace:
    """The options, those that no part reads refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"{', '.join(OPTIONS)}; all if none is named")
    model = parser.add_mutually_exclusive_group()
    model.add_argument("--arch", default="llama", choices=names(), help="a model that ships (default: llama)")
    model.add_argument("--model", type=Path, help="the folder of another model")
    parser.add_argument("--samples", type=int, help="prompts a cell (default: 200; layers and depths: half of it)")
    parser.add_argument(
        "--lengths", type=int, nargs="+", help="of prompts, in tokens (skills, depths; default: 512 to 4096)"
    )
    parser.add_argument(
        "--shares", type=share_of, nargs="+", help="of the tokens, kept (sensitivity; default: 1/4 to 1/32)"
    )
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS, metavar="task",
        help=f"default: all for skills, two for the other parts; there are: {'; '.join(TASKS)}",
    )  # fmt: skip
    parser.add_argument("--split", choices=("validation", "test", "other"), help="books (not language; default: test)")
    parser.add_argument("--out", type=Path, help="folder for tables and pictures, written part by part")
    args = parser.parse_args()
    args.parts = args.parts or list(OPTIONS)
    unknown = set(args.parts) - set(OPTIONS)
    if unknown:
        parser.error(f"parts: got {', '.join(sorted(unknown))}; allowed are {', '.join(OPTIONS)}")
    read = {option for part in args.parts for option in OPTIONS[part]}
    for option in ("samples", "lengths", "shares", "tasks", "split"):
        given = getattr(args, option)
        if given is not None and option not in read:
            parser.error(f"--{option}: {' and '.join(args.parts)} would not read it")
        if isinstance(given, list) and len(set(given)) < len(given):
            parser.error(f"--{option}: got {given}; allowed are different ones")
        if given is None:
            setattr(args, option, DEFAULTS.get(option))
    return args


def main() -> None:
    args = parse()
    if "language" in args.parts:
        import_module("brotli")  # what is missing had better be missed now than in an hour
    if args.out:
        import_module("matplotlib")
        args.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(args.model or path(args.arch), args.samples, args.split, args.out)
    two = args.tasks or ["passkey", "one of 8 needles"]
    tables: dict[str, Callable[[], list[str]]] = {
        "skills": lambda: [bench.skills(args.lengths, args.tasks or list(TASKS))],
        "depths": lambda: [bench.depths(args.lengths, two)],
        "language": lambda: [bench.language()],
        "layers": lambda: [bench.layers(task, 1 / 8) for task in two],
        "sensitivity": lambda: [bench.sensitivity(task, args.shares) for task in two],
    }
    for part in args.parts:
        printed = tables[part]()
        print(*printed, sep="\n", flush=True)
        if args.out:
            (args.out / f"{part}.md").write_text("\n".join(printed))
            (args.out / f"{part}.json").write_text(json.dumps(bench.results[part], indent=1))


if __name__ == "__main__":
    main()
