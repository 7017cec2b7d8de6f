"""What it changes that a saved cache begins a prompt in vLLM with its keys at positions 0 to k - 1.

Documents with a hidden key are read under a policy whose layers and heads hold the same tokens, and asked twice with
Transformers: as the cache is, entries at the positions of the document, and as vLLM holds it. Printed is how often
both give the same greedy answer, how often each says the key, and how far the distributions of the answer's first
token are apart (KL divergence in nats, mean over the documents).

    python benchmarks/prefixes.py mini/llama --tokens 600 --documents 20
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer, DynamicCache

import distill
from benchmarks.harness import table
from distill import GemFilter, Policy, StreamingLLM
from distill.distillation.document import copied
from distill.engines.prefix import Prefix, frequencies, read_prefix
from distill.mini.passkey import QUESTION, make_prompt, story


def as_in_vllm(prefix: Prefix) -> DynamicCache:
    """A stock cache of a prefix's entries."""
    cache = DynamicCache()
    for index, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        cache.update(keys[None], values[None], index)
    return cache


@torch.no_grad()
def answer(model: Any, cache: Any, ids: list[int], new: int) -> tuple[Tensor, list[int]]:
    """Log-probabilities `(vocabulary,)` of the first token behind a question, and the greedy answer."""
    following, tokens, first = torch.tensor([ids]), [], None
    for _ in range(new):
        output = model(following, past_key_values=cache, policy=None, use_cache=True, logits_to_keep=1)
        logits = output.logits[0, -1].float()
        first = logits.log_softmax(-1) if first is None else first
        tokens.append(int(logits.argmax()))
        following = torch.tensor([tokens[-1:]])
    assert first is not None
    return first, tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a checkpoint")
    parser.add_argument("--tokens", type=int, default=600, help="of each document (default 600)")
    parser.add_argument("--documents", type=int, default=20, help="default 20")
    parser.add_argument("--layer", type=int, default=3, help="GemFilter's layer (default 3)")
    parser.add_argument("--new", type=int, default=8, help="tokens of an answer (default 8)")
    args = parser.parse_args()
    model = distill.load(args.model, policy=None, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    if tokenizer.bos_token_id is None:
        raise SystemExit(f"{args.model}: its tokenizer has no BOS, with which the prompts begin")
    frequency = frequencies(model.config)
    question = len(tokenizer(f"\n{QUESTION}", add_special_tokens=False).input_ids)
    policies: dict[str, Policy | None] = {"none": None}
    for share in (1 / 2, 1 / 4):
        policies[f"streamingllm, {share:.0%}"] = StreamingLLM(budget=share)
        policies[f"gemfilter, {share:.0%}"] = GemFilter(budget=share, layer=args.layer)
    rows = []
    for name, policy in tqdm(policies.items(), desc="policies", unit="policy"):
        same, apart, said = 0, 0.0, [0, 0]
        for number in range(args.documents):
            prompt = make_prompt(tokenizer, story(), args.tokens, (number + 0.5) / args.documents, number)
            ids, asked = prompt.ids[:, :-question], prompt.ids[0, -question:].tolist()
            cache = model(ids, policy=policy, use_cache=True, logits_to_keep=1).past_key_values
            with tempfile.TemporaryDirectory() as folder:
                distill.save_cache(cache, folder, model, ids=ids)
                moved = as_in_vllm(read_prefix(Path(folder), frequency))
            found = [answer(model, each, asked, args.new) for each in (copied(cache), moved)]
            same += found[0][1] == found[1][1]
            apart += float((found[0][0].exp() * (found[0][0] - found[1][0])).sum()) / args.documents
            said = [
                count + (prompt.answer in tokenizer.decode(each[1])) for count, each in zip(said, found, strict=True)
            ]
        rows.append([name, f"{same} / {args.documents}", *map(str, said), f"{apart:.5f}"])
    print(f"{args.documents} documents of {args.tokens} tokens, answers of {args.new}\n")
    print(table(["policy", "same answer", "key: as saved", "key: at 0 to k - 1", "KL"], rows))


if __name__ == "__main__":
    main()
