"""A student goes on learning from what it writes itself: on-policy distillation, by TRL.

    python -m distill.distillation.onpolicy STUDENT TEACHER --text book.txt notes.txt.gz --steps 200 -o OUT

A student that was taught on texts only never sees its own mistakes. Here it continues the beginnings of the texts, and
is taught what the teacher would have said at each place of its own continuation. STUDENT is a checkpoint such as a
stage of `distill.distillation.chain`.

Source: "On-Policy Distillation of Language Models", https://arxiv.org/abs/2306.13649. TRL's `GKDTrainer` does the
work, and goes on from its last checkpoint. Needs `pip install distill-llm[trl]`.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.trainer_utils import get_last_checkpoint

from distill.distillation.chain import blocks_of, check_same_tokens, perplexity_on
from distill.distillation.scorer import read
from distill.patches.checks import check_integer, check_number


@dataclass(frozen=True)
class OnPolicy:
    """How a student is taught on what it writes.

    Args:
        steps: of the optimizer.
        batch: texts a step.
        begin: tokens of a text that the student continues.
        write: tokens that it writes, at most; also how much of a text follows its beginning where the text is taught.
        share: of the steps that are taught on the student's own continuations; the others on the text's.
        beta: of the divergence (generalised JSD): 0 is the KL from teacher to student, 1 the reverse.
        temperature: of the student's sampling.
        rate: learning rate at its height; it rises over the first tenth of the steps, and falls to 0.
        seed: of sampling and of the order of texts.
    """

    steps: int = 100
    batch: int = 4
    begin: int = 64
    write: int = 64
    share: float = 0.5
    beta: float = 0.5
    temperature: float = 1.0
    rate: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("begin", 1), ("write", 1), ("seed", 0)):
            check_integer(name, getattr(self, name), least)
        for name in ("share", "beta"):
            check_number(name, getattr(self, name), 0, 1)
        check_number("temperature", self.temperature, 1e-3, 1e3)
        check_number("rate", self.rate, 1e-9, 1)


def teach(student: Any, teacher: Any, tokenizer: Any, blocks: Tensor, output: Path, how: OnPolicy) -> Any:
    """Teaches a student in place; returns TRL's trainer, whose `state.log_history` has the losses.

    Args:
        student, teacher: causal LMs with the same tokens.
        tokenizer: of both.
        blocks: `(blocks, begin + write)` token ids.
        output: a folder for checkpoints; a run that was killed goes on from the last one.
        how: the settings.
    Raises:
        ValueError: TRL is not installed, or blocks of another length.
    """
    if importlib.util.find_spec("trl") is None:
        raise ValueError("trl: got none installed; allowed after `pip install distill-llm[trl]`")
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    if blocks.shape[1] != how.begin + how.write:
        raise ValueError(
            f"blocks: got a length of {blocks.shape[1]}; allowed is begin + write, {how.begin + how.write}"
        )

    def collate(rows: Sequence[Mapping[str, list[int]]]) -> dict[str, Tensor]:
        ids = torch.tensor([row["input_ids"] for row in rows])  # (batch, begin + write)
        labels = ids.clone()
        labels[:, : how.begin] = -100
        everything = torch.ones_like(ids)
        return {
            "input_ids": ids, "attention_mask": everything, "labels": labels,
            "prompts": ids[:, : how.begin], "prompt_attention_mask": everything[:, : how.begin],
        }  # fmt: skip

    arguments = GKDConfig(
        output_dir=str(output),
        max_steps=how.steps,
        per_device_train_batch_size=how.batch,
        learning_rate=how.rate,
        warmup_steps=max(1, how.steps // 10),
        lmbda=how.share,
        beta=how.beta,
        temperature=how.temperature,
        max_new_tokens=how.write,
        seed=how.seed,
        data_seed=how.seed,
        logging_steps=1,
        save_steps=max(1, how.steps // 10),
        save_total_limit=1,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=not torch.accelerator.is_available(),
        report_to="none",
    )
    trainer = GKDTrainer(
        model=student,
        teacher_model=teacher,
        args=arguments,
        train_dataset=Dataset.from_dict({"input_ids": blocks.tolist()}),
        processing_class=tokenizer,
        data_collator=collate,
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(output)) if output.is_dir() else None)
    return trainer


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m distill.distillation.onpolicy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("student", help="folder of a checkpoint")
    parser.add_argument("teacher", help="folder or name of a checkpoint with the same tokenizer")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="text files, .gz or not")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the student")
    for name, default in vars(OnPolicy()).items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"(default: {default})")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    try:
        how = OnPolicy(**{name: getattr(args, name) for name in vars(OnPolicy())})
        tokenizer = AutoTokenizer.from_pretrained(args.student)
        check_same_tokens(AutoTokenizer.from_pretrained(args.teacher), tokenizer)
        blocks, apart = blocks_of(tokenizer, [read(path) for path in args.text], how.begin + how.write)
        student = AutoModelForCausalLM.from_pretrained(args.student, dtype=args.dtype).eval()
        teacher = AutoModelForCausalLM.from_pretrained(args.teacher, dtype=args.dtype).eval()
        before = perplexity_on(student, apart)
        teach(student, teacher, tokenizer, blocks, args.output / "run", how)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    student.eval().save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    print(f"perplexity on text kept apart: {before:.2f} -> {perplexity_on(student, apart):.2f}; in {args.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
