"""The command `distill prune`: shortens a file or standard input, and reports what it did."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from distill.pruning.checks import BadArgument, bad
from distill.pruning.names import DEFAULT_RATE, SCORERS

EXAMPLES = """\
examples:
  distill prune in.txt -o out.md --rate 0.5
      keep half of the tokens; out.md gets the text and a report block
  distill prune notes.txt --target-tokens 2000 --target-tokenizer Qwen/Qwen2.5-7B-Instruct
      at most 2000 tokens, counted as that model counts them
  distill prune paper.txt --rate 0.3 --question "Which data did they use?"
      keep the sentences that bear on the question
  distill prune in.txt --rate 0.4 --force-token "\\n" --keyword deadline --html out.html
      never lose a line break or the word; a page shows what went, faded
  distill prune server.log --scorer baseline --rate 0.3 --counts
      whole lines of the log, every error, and how many lines each one stands for
  distill prune in.txt --rate 0.3 --anchors versions,money --segments code=0.5
      only versions and money must stay; half of the code may go

A budget is never exceeded, except when what must stay (numbers, names, negations, your own words) needs more: then the
report says OVER THE BUDGET and the exit status is 3. Bad input: exit status 2. Nothing is downloaded unless you name a
model that is not on this machine.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `distill prune` to a parser."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("input", nargs="?", default="-", help="a UTF-8 text file; - or nothing: standard input")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="the pruned text and the report go here; without it, to standard output and standard error",
    )
    budget = parser.add_argument_group("budget (one of)")
    one = budget.add_mutually_exclusive_group()
    one.add_argument("--rate", type=float, help=f"share of tokens to keep, in (0, 1] (default {DEFAULT_RATE})")
    one.add_argument("--reduce-rate", type=float, help="share of tokens to remove, in [0, 1)")
    one.add_argument("--target-tokens", type=int, metavar="N", help="tokens to keep, at most")
    one.add_argument("--threshold", type=float, help="keep every unit with at least this score, in [0, 1]")
    budget.add_argument(
        "--target-tokenizer",
        metavar="NAME",
        help="counts the tokens: a Hugging Face tokenizer, or tiktoken:ENCODING; default: the scorer's (an estimate)",
    )
    score = parser.add_argument_group("what matters")
    score.add_argument(
        "--model",
        metavar="NAME",
        help="scores the text: a causal LM, token classifier or cross-encoder; default: the shipped small model",
    )
    score.add_argument(
        "--scorer",
        default="auto",
        choices=("auto", *SCORERS),
        metavar="NAME",
        help=f"auto (default) or one of {', '.join(SCORERS)}",
    )
    score.add_argument("--question", help="keep what bears on this question, by sentences")
    score.add_argument(
        "--question-model",
        default="auto",
        metavar="NAME",
        help="reads sentences for --question: a sentence encoder or cross-encoder; none: the scoring model alone",
    )
    score.add_argument("--device", default="cpu", help="where the model runs (default cpu)")
    score.add_argument(
        "--dtype",
        default="auto",
        metavar="NAME",
        help="what it computes in: auto (default; float32 on a CPU), float32, float16, or bfloat16, which halves the "
        "time of a large model on a CPU that has it",
    )
    keep = parser.add_argument_group("what must stay")
    keep.add_argument(
        "--force-token",
        action="append",
        default=[],
        metavar="S",
        help=r"a string to keep everywhere, e.g. '?' or '\n'; repeatable",
    )
    keep.add_argument(
        "--keyword", action="append", default=[], metavar="WORD", help="a word to keep in any case; repeatable"
    )
    keep.add_argument("--pattern", action="append", default=[], metavar="REGEX", help="keep every match; repeatable")
    keep.add_argument(
        "--ner",
        default="auto",
        metavar="NAME",
        help="names: auto, spacy, spacy:PIPELINE, capitals, none, or a token-classification model",
    )
    keep.add_argument(
        "--rules",
        metavar="NAMES",
        help="comma-separated rules to apply, or none; default: all (numbers, dates, URLs, code, negations, ...)",
    )
    keep.add_argument(
        "--anchors",
        metavar="NAMES",
        help="comma-separated rules and kinds of names that hold, e.g. versions,money; none; default: all",
    )
    keep.add_argument("--no-keep-tags", action="store_true", help="<keep> in the text is plain text, not a mark")
    keep.add_argument(
        "--segments",
        metavar="KIND=SHARE,...",
        nargs="?",
        const="all",
        help="shares to keep by kind of text, e.g. log=0.2,code=0.5 (1: as it is); alone: less of what repeats "
        "earlier text; none: no kinds. Default: instructions, headings, code, JSON and frames of tables stay",
    )
    keep.add_argument(
        "--layout",
        choices=("keep", "compact"),
        default="keep",
        help="line breaks: keep all, or drop lines that lost all they had",
    )
    shown = parser.add_argument_group("what is shown")
    shown.add_argument("--html", metavar="FILE", help="a page with removed parts faded and anchors coloured")
    shown.add_argument("--json", metavar="FILE", help="spans, counts, masks and timings as JSON")
    shown.add_argument("--counts", action="store_true", help="' (x COUNT)' behind lines that stand for several")
    shown.add_argument("--no-report", action="store_true", help="only the text")
    shown.add_argument("--report-only", action="store_true", help="only the report, on standard output")


def _read(name: str) -> str:
    try:
        # newline="": line ends reach the output as they are
        if name == "-":
            return sys.stdin.buffer.read().decode("utf-8")
        with open(name, encoding="utf-8", newline="") as file:
            return file.read()
    except OSError as error:
        raise bad("input", name, f"files that can be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise bad("input", name, f"UTF-8 text (it is not UTF-8 at byte {error.start})") from None


def _write(option: str, name: str, text: str) -> None:
    try:
        with open(name, "w", encoding="utf-8", newline="") as file:
            file.write(text)
    except OSError as error:
        raise bad(option, name, f"files that can be written ({error.strerror})") from None


def _rules(value: str | None) -> str | bool | list[str]:
    if value is None:
        return "auto"
    return False if value == "none" else [name.strip() for name in value.split(",") if name.strip()]


def _segments(value: str | None) -> bool | dict[str, float] | None:
    if value is None or value in ("all", "none"):
        return {None: None, "all": True, "none": False}[value]
    shares = {}
    for part in value.split(","):
        kind, _, share = part.partition("=")
        try:
            shares[kind.strip()] = float(share)
        except ValueError:
            raise bad("--segments", part, "pairs such as log=0.2") from None
    return shares


def _names(value: str | None) -> list[str] | None:
    if value is None:
        return None
    return [] if value == "none" else [name.strip() for name in value.split(",") if name.strip()]


def run(args: argparse.Namespace) -> int:
    """Runs the command.

    Returns:
        0, or 3 if the result is over its budget.

    Raises:
        ValueError: an argument that is not allowed, by name.
    """
    if args.no_report and args.report_only:
        raise BadArgument("--report-only", "both this and --no-report", "one of them")
    from distill.pruning.engine import Distill
    from distill.pruning.html import page
    from distill.pruning.result import report

    text = _read(args.input)
    distill = Distill(
        args.model,
        args.device,
        scorer=args.scorer,
        ner=None if args.ner == "none" else args.ner,
        rules=_rules(args.rules),
        target_tokenizer=args.target_tokenizer,
        question_model=None if args.question_model == "none" else args.question_model,
        dtype=args.dtype,
        layout=args.layout,
    )
    result = distill.compress(
        text,
        args.rate,
        reduce_rate=args.reduce_rate,
        target_tokens=args.target_tokens,
        threshold=args.threshold,
        question=args.question,
        # shells make it hard to type a line break
        force_tokens=[t.replace("\\n", "\n").replace("\\t", "\t") for t in args.force_token],
        keywords=args.keyword,
        patterns=args.pattern,
        keep_tags=not args.no_keep_tags,
        segments=_segments(args.segments),
        anchors=_names(args.anchors),
    )
    lines = report(result)
    shortened = result.with_counts() if args.counts else result.text
    if args.html:
        _write("--html", args.html, page(result, "Pruned text" if args.input == "-" else Path(args.input).name))
    if args.json:
        _write("--json", args.json, json.dumps(result.to_dict(), ensure_ascii=False, indent=1) + "\n")
    if args.report_only:
        print(lines)
    elif args.output:
        block = "" if args.no_report else f"\n\n<!-- distill prune\n{lines.replace('-->', '->')}\n-->\n"
        _write("--output", args.output, shortened + block)
    else:
        sys.stdout.write(shortened)
        if not args.no_report:
            print(f"\n---\n{lines}", file=sys.stderr)
    return 3 if result.over_budget else 0
