"""`distill pipeline`: prunes a text, chooses a model by measured quality, lets it answer, and writes a report."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

EPILOG = """\
examples:
  distill pipeline --config default --input in.txt --output out.md
      shorten in.txt by half; out.md says how many tokens went and how long that took
  distill pipeline --config my.json --input in.txt --output out.md --question "Who paid?" --answer
      keep what bears on the question, choose a model, and let it answer

my.json (what is left out is as in the shipped default.json):
  {"prune": {"rate": 0.3},
   "route": {
     "bands": [{"up_to": 0.3, "share": 0.9}, {"up_to": 1.0, "share": 0.98}],
     "models": [
       {"model": "students/s2", "quality": 61.0, "cost": 0.2, "max_tokens": 2048},
       {"model": "gpt-x", "quality": 66.0, "cost": 1.0, "address": "http://localhost:8000/v1"}]}}

A prompt of complexity up to 0.3 goes to the cheapest model with at least 90 % of the best one's quality, others to
the cheapest with 98 %. In place of model and quality an entry may have "results": the folder of a run that
`distill eval` has scored. All qualities must be of the same benchmark; a model no better than chance is never chosen.
"model" is a folder on this machine, loaded through distill.load, unless "address" says where it is served
(OpenAI-compatible; the key is OPENAI_API_KEY of the environment). Everything is checked before the first step.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `distill pipeline`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument("--config", default="default", help="JSON file, or the shipped one (default %(default)s)")
    parser.add_argument("--input", type=Path, required=True, help="a UTF-8 text file")
    parser.add_argument("--output", type=Path, required=True, help="the report, in Markdown")
    parser.add_argument("--question", help="what is asked about the text, in place of the config's")
    parser.add_argument("--answer", action="store_true", help="let the chosen model answer")
    parser.add_argument("--device", default="cpu", help="where pruner and local models run (default %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Runs the pipeline; 3 if the pruned text is over its budget, as `distill prune`.

    Raises:
        ValueError: an argument or an entry of the config that is not allowed, by name.
    """
    from distill.pruning.pipeline import markdown, read_settings
    from distill.pruning.pipeline import run as run_pipeline

    settings = read_settings(args.config)
    if args.question is not None:
        settings = replace(settings, question=args.question)
    if args.output.is_dir() or not args.output.parent.is_dir():
        raise ValueError(f"--output: got {args.output}; allowed are files in a folder that exists")
    if args.output.exists() and args.input.exists() and args.output.samefile(args.input):
        raise ValueError(f"--output: got {args.output}, which is the input; allowed are other files")
    try:
        text = args.input.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--input: got {args.input} ({error}); allowed are files of UTF-8 text") from None
    if args.answer:
        check_answerable(settings.candidates)

    failed: list[Exception] = []

    def answer(candidate: Any, prompt: str) -> str | None:
        try:
            if candidate.address is not None:
                return ask_server(candidate, prompt, settings.max_new_tokens)
            return ask_folder(candidate.model, prompt, settings.max_new_tokens, args.device)
        except Exception as error:  # raised again when the report is written: what was pruned is not lost
            failed.append(error)
            return None

    from distill.pruning.engine import Distill

    options = dict(settings.pruner)
    pruner = Distill(options.pop("model", None), args.device, **options)
    outcome = run_pipeline(text, settings, pruner, answer if args.answer else None)
    args.output.write_text(markdown(outcome, args.input.name), encoding="utf-8")
    pruned = outcome.pruned
    print(f"{pruned.original_tokens} -> {pruned.tokens} tokens; report: {args.output}")
    if outcome.chosen is not None:
        print(f"model: {outcome.chosen.model} ({outcome.chosen.reasons[0]})")
    if failed:
        raise failed[0]
    if pruned.over_budget:
        print("OVER THE BUDGET", file=sys.stderr)
    return 3 if pruned.over_budget else 0


def check_answerable(candidates: Any) -> None:
    """Raises a `ValueError` unless each model can be asked: a folder with a checkpoint, or a server that is there."""
    import httpx

    if not candidates:
        raise ValueError("--answer: got no model to ask; allowed with models in the config's route")
    for one in candidates:
        if one.address is None:
            if not (Path(one.model) / "config.json").is_file():
                raise ValueError(
                    f"model: got {one.model!r}, which is no folder with a checkpoint; allowed are such folders, and "
                    "names with the address of their server"
                )
            continue
        try:
            # any answer will do: not every server lists its models
            httpx.get(f"{one.address.rstrip('/')}/models", headers=_key(), timeout=10)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ValueError(f"address: got {one.address} ({error}); allowed are servers that answer") from None


def ask_folder(folder: str, prompt: str, max_new_tokens: int, device: str) -> str:
    """The answer of a checkpoint, greedily, under the policy that was saved with it."""
    from transformers import AutoTokenizer

    from distill.evaluation.measure import timed_generate
    from distill.generate_cli import encode
    from distill.models import load

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = load(folder, dtype="auto").to(device).eval()
    inputs = encode(tokenizer, prompt, True).to(device)
    output, _, _ = timed_generate(model, inputs, max_new_tokens=max_new_tokens, pad_token_id=tokenizer.eos_token_id)
    text: str = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text.strip()


def ask_server(candidate: Any, prompt: str, max_new_tokens: int) -> str:
    """The answer of an OpenAI-compatible server.

    Raises:
        ValueError: it does not answer, or not as such servers do.
    """
    import httpx

    body = {
        "model": candidate.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_new_tokens,
        "temperature": 0,
    }
    try:
        reply = httpx.post(
            f"{candidate.address.rstrip('/')}/chat/completions", json=body, headers=_key(), timeout=600
        ).raise_for_status()
        return str(reply.json()["choices"][0]["message"]["content"]).strip()
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"address: got {candidate.address}, which gave no answer ({reason}); allowed are OpenAI-compatible servers"
        ) from None


def _key() -> dict[str, str]:
    key = os.environ.get("OPENAI_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}
