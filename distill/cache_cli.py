"""`distill cache`: reads documents once, keeps their caches in a folder, and asks them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from distill.generate_cli import add_set_argument, method_of

_EXAMPLES = """\
examples:
  distill cache make MODEL --file report.txt -o caches/report
  distill cache make MODEL --file report.txt --budget 0.125 -o caches/report
  distill cache make MODEL --file a.txt b.txt c.txt -o caches           (one folder for each, caches/a and so on)
  distill cache make MODEL --file report.txt --method kvzap --budget 1/4 -o caches/report  (one reading, with a scorer)
  distill cache train caches/report -o caches/taught                    (minutes to hours, for thousands of questions)
  distill cache info caches
  distill cache ask caches/report "Who signed it?" "On which day?"
  distill cache ask caches "Who signed the report?"                     (chooses the document, and names it)
"""

_HELP = {
    "make": "read documents and save what is kept of their caches",
    "train": "teach a saved cache to say what the whole one says, on questions that the model asks itself",
    "ask": "answer questions from saved caches",
    "info": "show what saved caches hold",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `distill cache`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EXAMPLES
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    parsers = {name: actions.add_parser(name, help=line, description=line) for name, line in _HELP.items()}
    for sub in parsers.values():
        sub.formatter_class = argparse.RawDescriptionHelpFormatter
        sub.epilog = _EXAMPLES
    _make_arguments(parsers["make"])
    _train_arguments(parsers["train"])
    _ask_arguments(parsers["ask"])
    parsers["info"].add_argument("folder", type=Path, help="a saved cache, or a folder of them")


def _make_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="folder or Hub name of a checkpoint")
    parser.add_argument("--file", type=Path, nargs="+", required=True, help="text files, one document each")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder of the cache; of several, a folder for each in it"
    )
    parser.add_argument(
        "--method",
        "--policy",
        help="none (the whole cache), a name from `distill methods`, or a name with arguments (default: matching "
        "of kvzip with its published words in the model's tokens, and a budget of 1/4)",
    )
    parser.add_argument("--budget", help="tokens (an integer) or a share (such as 0.125 or 1/8) to keep")
    add_set_argument(parser)
    parser.add_argument("--no-chat-template", action="store_true", help="give the model the bare text")
    parser.add_argument("--prefill-chunk-size", type=int, help="read a document in pieces of so many tokens")
    _model_arguments(parser, "as in the checkpoint")


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a saved cache of one document")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the taught cache")
    parser.add_argument("--run", type=Path, help="folder of the run, from which it goes on (default: OUTPUT.run)")
    parser.add_argument("--model", help="the model that filled the cache (default: from where it was loaded then)")
    parser.add_argument("--steps", type=int, default=200, help="of the optimizer (default: %(default)s)")
    parser.add_argument("--count", type=int, default=128, help="conversations to make up (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="of them in a step (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=0.02, help="learning rate at first (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    _model_arguments(parser, "that of the cache")


def _ask_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a saved cache, or a folder of them")
    parser.add_argument("question", nargs="+", help="what to ask; each is answered as if it were asked first")
    parser.add_argument("--model", help="the model that filled the caches (default: from where it was loaded then)")
    parser.add_argument("--document", help="name of the document to ask (default: the one most like the question)")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="length of an answer (default: %(default)s)")
    _model_arguments(parser, "that of the caches")


def _model_arguments(parser: argparse.ArgumentParser, dtype: str) -> None:
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", help=f"float32, bfloat16, ... (default: {dtype})")
    parser.add_argument("--attention", help="eager, sdpa, flash_attention_2, ...")


def run(args: argparse.Namespace) -> int:
    """Runs the action.

    Raises:
        ValueError: files or folders that cannot be read, unknown methods, a model that the caches are not of.
    """
    return {"make": _make, "train": _train, "ask": _ask, "info": _info}[args.action](args)


def _loaded(path: str, dtype: str, args: argparse.Namespace) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    from distill.models import load

    kwargs = {} if args.attention is None else {"attn_implementation": args.attention}
    model = load(path, policy=None, dtype=dtype, **kwargs).to(args.device).eval()
    return model, AutoTokenizer.from_pretrained(path)


def _model_of(record: dict[str, Any], args: argparse.Namespace) -> tuple[Any, Any]:
    """The model that filled a cache, and its tokenizer."""
    path = args.model or (record["model"] or {}).get("name")
    if not path:
        raise ValueError("model: got nothing, and the cache does not say which model filled it; allowed is --model")
    return _loaded(path, args.dtype or record["sizes"]["dtype"], args)


def _make(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from distill import AttentionMatching
    from distill.distillation.ask import read_document
    from distill.distillation.keep import save_cache

    places = _places(args.file, args.output)
    # before a model is loaded, as it may be refused
    method = method_of(args.method or "kvzip", _share(args.budget or (None if args.method else "1/4")), args.set)
    texts = {path: path.read_text(encoding="utf-8") for path in places}
    model, tokenizer = _loaded(args.model, args.dtype or "auto", args)
    if args.method is None and method is not None:  # other attention takes no bias
        method = AttentionMatching(method, bias=args.attention in (None, "eager", "sdpa"))
    method = None if method is None else method.for_tokenizer(tokenizer)
    for path, place in tqdm(places.items(), desc="documents", unit="document", leave=False):
        cache = read_document(
            model,
            tokenizer,
            texts[path],
            method,
            name=path.name,
            in_chat=False if args.no_chat_template else None,
            prefill_chunk_size=args.prefill_chunk_size,
        )
        save_cache(cache, place)
    print(_table(list(places.values())))
    return 0


def _share(text: str | None) -> str | None:
    """A budget, where it is written as `1/8`, as a decimal number."""
    from fractions import Fraction

    try:
        return str(float(Fraction(text))) if text and "/" in text else text
    except (ValueError, ZeroDivisionError):
        return text  # it is refused with all that is no budget


def _places(files: list[Path], output: Path) -> dict[Path, Path]:
    """Where the cache of each file goes.

    Raises:
        ValueError: no such file, or two of one name.
    """
    for path in files:
        if not path.is_file():
            raise ValueError(f"file: got {path}, which is no file; allowed are text files")
    if len(files) == 1:
        return {files[0]: output}
    stems = [path.stem for path in files]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise ValueError(f"file: got two files called {twice}; allowed are different names")
    return {path: output / path.stem for path in files}


def _train(args: argparse.Namespace) -> int:
    from distill.distillation.keep import load_cache, read_record, save_cache
    from distill.distillation.trained import train_cache

    model, tokenizer = _model_of(read_record(args.folder), args)
    run = args.run or args.output.with_name(args.output.name + ".run")
    cache = load_cache(args.folder, model, tokenizer)
    settings = {name: getattr(args, name) for name in ("steps", "count", "batch", "rate", "seed")}
    save_cache(train_cache(model, tokenizer, cache, run, **settings), args.output)
    print(_table([args.output]))
    return 0


def _ask(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from distill.distillation.ask import ask
    from distill.distillation.keep import load_cache, read_record
    from distill.distillation.shelf import shelf

    places = shelf(args.folder)
    records = {name: read_record(place) for name, place in places.items()}
    chosen = [_chosen(question, records, args.document) for question in args.question]
    model, tokenizer = _model_of(next(iter(records.values())), args)
    answers: dict[tuple[int, str], str] = {}
    for name in tqdm(sorted({name for names in chosen for name in names}), desc="documents", leave=False):
        cache = load_cache(places[name], model, tokenizer)
        asked = [number for number, names in enumerate(chosen) if name in names]
        questions = ["\n\n" + args.question[number] for number in asked]
        found = ask(model, tokenizer, cache, questions, args.max_new_tokens)
        answers |= {(number, name): answer for number, answer in zip(asked, found, strict=True)}
    for number, names in enumerate(chosen):
        print(args.question[number])
        for name in names:
            print(f"  {name}: " + answers[number, name].strip().replace("\n", "\n    "))
        if len(names) > 1:
            print("  (these documents are equally like the question)")
    return 0


def _chosen(question: str, records: dict[str, Any], document: str | None) -> list[str]:
    """Names of the documents that a question is put to."""
    from distill.distillation.shelf import documents_for

    if document is not None and document not in records:
        raise ValueError(f"document: got {document!r}; allowed are {', '.join(records)}")
    if document is not None or len(records) == 1:
        return [document or next(iter(records))]
    texts = {name: record["document"] for name, record in records.items()}
    silent = [name for name, text in texts.items() if text is None]
    if silent:
        raise ValueError(f"document: got nothing, and {silent[0]} was saved without its text; allowed is a name")
    return documents_for(question, texts)


def _info(args: argparse.Namespace) -> int:
    from distill.distillation.shelf import shelf

    print(_table(list(shelf(args.folder).values())))
    return 0


def _table(places: list[Path]) -> str:
    """One line for each cache; of a single one, its layers too."""
    from distill.distillation.keep import open_cache, read_record
    from distill.distillation.shelf import summary
    from distill.patches.show import show_cache

    rows = [("document", "tokens", "entries", "bytes", "share", "policy")]
    rows += [summary(place) for place in places]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, 5)), row[5]]) for row in rows
    ]
    if len(places) == 1:
        record = read_record(places[0])
        model = (record["model"] or {}).get("name") or "not said"
        lines += ["", f"model: {model}, {record['sizes']['dtype']}", "", str(show_cache(open_cache(places[0])))]
    return "\n".join(lines)
