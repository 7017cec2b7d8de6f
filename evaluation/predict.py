"""Prediction: a model answers the samples of a benchmark, and the answers are written into result files.

Scoring is a step of its own and never needs the model. Under `accelerate launch` the processes share the samples, and
one of them merges what all have written.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from distill.evaluation import facts, likelihood, prompting
from distill.evaluation.benchmark import Benchmark, Sample, Source, Task, check_tasks
from distill.evaluation.checks import LARGEST
from distill.evaluation.generation import Decoding, Generation, Generator
from distill.evaluation.lock import only_writer
from distill.evaluation.methods import Method
from distill.evaluation.presets import Preset
from distill.evaluation.prompting import Encoder, Prompt
from distill.evaluation.served import BATCH, ServedGenerator, ServedModel
from distill.evaluation.store import ResultFile, Results, summarise
from distill.patches.checks import check_integer, check_number


@dataclass(frozen=True)
class Plan:
    """What to run: everything except the model and the method.

    Attributes:
        benchmark: the benchmark.
        tasks: names of the tasks, or None for those that the benchmark runs by default.
        preset: name of one of the benchmark's presets.
        protocol: "query-aware" or "query-agnostic".
        max_length: truncation limit in prompt tokens; None for the preset's.
        limit: run only so many first samples of each task; None runs all.
        data_path, revision: see `benchmark.Source`.
        options: the benchmark's settings, from `Benchmark.options`.
        drilldown: for so many first samples of each task, the result file also says which prompt tokens were kept.
        restart: discard earlier results instead of continuing them.

    Raises:
        ValueError: an attribute has a value that is not allowed.
    """

    benchmark: Benchmark
    tasks: tuple[str, ...] | None = None
    preset: str = "official"
    protocol: str = "query-aware"
    max_length: int | None = None
    limit: int | None = None
    data_path: Path | None = None
    revision: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    drilldown: int = 0
    restart: bool = False

    def __post_init__(self) -> None:
        self.benchmark.preset(self.preset)
        # a limit of one token would leave half a token at each end
        for name, least in (("limit", 1), ("max_length", 2)):
            value = getattr(self, name)
            if value is not None:
                check_integer(name, value, least)
                check_number(name, value, least, LARGEST)
        check_integer("drilldown", self.drilldown, 0)
        check_number("drilldown", self.drilldown, 0, LARGEST)

    @property
    def rules(self) -> Preset:
        """What the preset says for this benchmark."""
        return self.benchmark.preset(self.preset)


class Processes:
    """The processes of an `accelerate launch`, or this one alone."""

    def __init__(self, cpu: bool = False) -> None:
        from accelerate import PartialState

        # shards take different times, and the first to end waits for the last: the default limit is too short
        self.state = PartialState(cpu=cpu, timeout=datetime.timedelta(days=7))
        self.rank, self.world = self.state.process_index, self.state.num_processes

    @property
    def main(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        self.state.wait_for_everyone()

    def share(self, error: str | None) -> str | None:
        """Tells every process the main process's error message (None: no error), so that all of them stop together.

        Otherwise the main process would stop, and the others would wait for it.
        """
        if self.world == 1:
            return error
        from accelerate.utils import broadcast_object_list

        box = [error]
        broadcast_object_list(box)
        return box[0]


def predict(
    plan: Plan, method: Method, model: Any, tokenizer: Any, folder: Path, processes: Processes | None = None
) -> list[Path]:
    """Predicts all samples that `folder` does not have yet.

    Args:
        plan: what to run.
        method: the method, or the stock model.
        model: a causal LM, in the state it is to be evaluated in.
        tokenizer: its tokenizer.
        folder: gets one result file `<task>.jsonl` for each task.
        processes: the processes of an `accelerate launch`; None for this one alone.

    Returns:
        The result files, complete for this plan.

    Raises:
        ValueError: bad settings, data or earlier results, or another process that writes into `folder`. Answers that
            have been written stay.
    """
    encoder = Encoder(tokenizer)
    tasks = check_tasks(plan.benchmark, plan.tasks, plan.options)
    _check(plan, tasks, tokenizer)
    kind = ServedGenerator if isinstance(model, ServedModel) else Generator
    generator = kind(model, encoder, method.policy, plan.protocol)
    environment = facts.environment(model.device)
    paths: list[Path] = []
    with ExitStack() as held:
        for task in tasks:
            template = uses_template(plan, task, tokenizer)
            samples = list(plan.benchmark.samples(task, _source(plan, encoder, template)))[: plan.limit]
            if any(sample.measured for sample in samples):
                likelihood.check(plan, method, isinstance(model, ServedModel))
            path = folder / f"{task.name}.jsonl"
            header = describe(plan, method, task, model, tokenizer, template) | {"environment": environment}
            if not paths:
                # as late as this, because data that cannot be had must not leave an empty folder
                _in_main(processes, lambda: held.enter_context(only_writer(folder)))
            _predict_task(plan, task, samples, template, generator, path, header, processes)
            paths.append(path)
    return paths


def _in_main(processes: Processes | None, act: Callable[[], Any]) -> None:
    """Does something in the main process only; what goes wrong there is raised in every process."""
    error = None
    if processes is None or processes.main:
        try:
            act()
        except ValueError as problem:
            error = str(problem)
    error = processes.share(error) if processes else error
    if error is not None:
        raise ValueError(error)


def uses_template(plan: Plan, task: Task, tokenizer: Any) -> bool:
    """Whether the preset puts this task into the tokenizer's chat template."""
    use = plan.rules.template
    if use == "never" or not task.template:
        return False
    return use == "always" or bool(getattr(tokenizer, "chat_template", None))


def render(plan: Plan, sample: Sample, encoder: Encoder, limit: int | None, template: bool) -> tuple[Prompt, bool]:
    """The prompt as the model gets it: cut to the limit, put into the chat template, then the answer's beginning.

    Args:
        plan: what is run.
        sample: the sample whose prompt it is.
        encoder: the model's tokenizer.
        limit: most tokens of the prompt before it is put into the template; None never cuts.
        template: whether it is put into the template.

    Returns:
        The prompt, and whether it was cut.
    """
    split = plan.protocol == "query-agnostic"
    prompt, cut = prompting.truncate_prompt(encoder, sample.prompt, limit, plan.rules.truncation, split)
    if template:
        prompt = prompting.chat(encoder.tokenizer, prompt)
    return Prompt(prompt.context, prompt.question + sample.answer_prefix), cut


def decoding(plan: Plan, task: Task) -> Decoding:
    """How the preset decodes this task."""
    stop = plan.rules.newline_stops and task.stop_at_newline
    return dataclasses.replace(plan.rules.decoding, stop_at_newline=stop)


def new_tokens(plan: Plan, task: Task, sample: Sample) -> int:
    """Tokens to generate at most: the sample's number, otherwise the task's, and what the preset adds to it."""
    return (sample.max_new_tokens or task.max_new_tokens) + plan.rules.extra_tokens


def window(model: Any) -> int | None:
    """The model's context length in tokens, None where its config does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def describe(plan: Plan, method: Method, task: Task, model: Any, tokenizer: Any, template: bool) -> dict[str, Any]:
    """The header of a result file, except for the environment. A run is continued only if all of it is equal.

    Args:
        plan: what is run.
        method: the method, or the stock model.
        task: the task that the file is for.
        model: the model.
        tokenizer: its tokenizer.
        template: whether prompts are put into the chat template, from `uses_template`.
    """
    config = model.config
    return {
        "benchmark": plan.benchmark.name,
        "task": task.name,
        "preset": plan.preset,
        "protocol": plan.protocol,
        "edition": method.edition,
        "label": method.label,
        "budget": method.budget,
        "method": None if method.policy is None else method.policy.to_dict(),
        "model": config.name_or_path,
        "model_type": config.model_type,
        "revision": getattr(config, "_commit_hash", None),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": config._attn_implementation,
        "window": window(model),
        "tokenizer": tokenizer.name_or_path,
        "template": template,
        "truncation": {"rule": plan.rules.truncation, "limit": limit_of(plan, model)},
        "max_new_tokens": task.max_new_tokens + plan.rules.extra_tokens,
        "decoding": vars(decoding(plan, task)),
        "data": _data(plan),
        "options": dict(plan.options),
        "drilldown": plan.drilldown,
    } | ({"engine": model.engine} if isinstance(model, ServedModel) else {})


def limit_of(plan: Plan, model: Any) -> int | None:
    """The limit in prompt tokens that long prompts are cut to: the plan's, otherwise the preset's. None: no limit."""
    if plan.max_length is not None:
        return plan.max_length
    model_type = model.config.model_type.removeprefix("distill_")
    return plan.rules.limit.tokens(window(model), model_type)


def _data(plan: Plan) -> dict[str, Any]:
    if plan.data_path is not None:
        return {"path": str(plan.data_path)}
    return {"repo": plan.benchmark.repo, "revision": plan.revision or plan.benchmark.revision}


def _source(plan: Plan, encoder: Encoder, template: bool) -> Source:
    overhead = 0
    if template:
        bare = Prompt("x", "")
        wrapped = prompting.chat(encoder.tokenizer, bare)
        overhead = len(encoder.encode(wrapped.text)) - len(encoder.encode(bare.text))
    return Source(encoder, plan.data_path, plan.revision, plan.preset, plan.options, overhead, plan.limit)


def _check(plan: Plan, tasks: Sequence[Task], tokenizer: Any) -> None:
    if plan.data_path is not None and not plan.data_path.exists():
        raise ValueError(f"--data-path: got {plan.data_path}; allowed are files and folders that exist")
    if plan.data_path is not None and plan.data_path.is_file() and plan.data_path.suffix != ".zip" and len(tasks) > 1:
        raise ValueError(
            f"--tasks: got {', '.join(task.name for task in tasks)}; allowed is one, because --data-path is one file"
        )
    if plan.rules.template == "always" and not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"--preset: got {plan.preset!r}; allowed are presets without a chat template, because the tokenizer "
            f"{tokenizer.name_or_path!r} has none"
        )
    if plan.protocol == "query-agnostic":
        leading = [task.name for task in tasks if task.question_leads]
        if leading:
            raise ValueError(
                f"--tasks: got {', '.join(leading)}; allowed under the query-agnostic protocol are tasks whose "
                "prompts do not name the question before the context, because the method would see it"
            )


def _predict_task(
    plan: Plan,
    task: Task,
    samples: Sequence[Sample],
    template: bool,
    generator: Generator,
    path: Path,
    header: Mapping[str, Any],
    processes: Processes | None,
) -> Results | None:
    order = [sample.id for sample in samples]
    rank, world = (processes.rank, processes.world) if processes else (0, 1)
    file = ResultFile(path, header, rank, world)

    def begin() -> None:
        if plan.restart:
            file.discard()
        file.prepare(order)

    _in_main(processes, begin)
    done = file.done()
    if processes:
        # no process may write before every one has read what is done
        processes.wait()
    todo = [(number, sample) for number, sample in enumerate(samples) if sample.id not in done][rank::world]
    limit = header["truncation"]["limit"]
    bar = tqdm(todo, desc=f"{plan.benchmark.name} {task.name} {header['label']}", unit="sample", disable=rank != 0)
    for place, (number, sample) in enumerate(bar):
        if isinstance(generator, ServedGenerator) and place % BATCH == 0:
            _prepare(plan, task, [each for _, each in todo[place : place + BATCH]], template, generator, limit)
        file.append(_answer(plan, task, sample, template, generator, limit, number < plan.drilldown))
    if processes:
        processes.wait()
    results = file.finish(order, summarise) if rank == 0 else None
    if processes:
        processes.wait()
    return results


def _prepare(
    plan: Plan, task: Task, samples: Sequence[Sample], template: bool, generator: ServedGenerator, limit: int | None
) -> None:
    """Lets an engine answer samples together."""
    if any(sample.follow_up is not None for sample in samples):
        raise ValueError(f"--tasks: got {task.name}, which asks twice; allowed with --engine vllm are others")
    rules = decoding(plan, task)
    prompts = [render(plan, sample, generator.encoder, limit, template)[0] for sample in samples]
    counts = [new_tokens(plan, task, sample) for sample in samples]
    generator.prepare([(prompt, count, rules) for prompt, count in zip(prompts, counts, strict=True)])


def _answer(
    plan: Plan, task: Task, sample: Sample, template: bool, generator: Generator, limit: int | None, keep: bool
) -> dict[str, Any]:
    prompt, cut = render(plan, sample, generator.encoder, limit, template)
    if sample.measured:
        return likelihood.record(generator, sample, prompt, cut)
    rules = decoding(plan, task)
    count = new_tokens(plan, task, sample)
    made = generator(prompt, count, rules, keep)
    record: dict[str, Any] = {"id": sample.id, "prediction": made.text}
    costs = [made]
    if sample.follow_up is not None:
        record["reasoning"] = made.text
        second = Prompt("", sample.follow_up.replace("$COT$", made.text))
        if template:
            second = prompting.chat(generator.encoder.tokenizer, second)
        # the second prompt holds no document: there is nothing to compress, so it is read whole
        whole = Generator(generator.model, generator.encoder, None, "query-aware")
        costs.append(whole(second, task.max_new_tokens, rules))
        record["prediction"] = costs[-1].text
    record |= {"reference": sample.reference, "group": sample.group, "prompt_tokens": made.prompt_tokens}
    record["prompt_sha256"] = hashlib.sha256(prompt.text.encode("utf-8", "surrogatepass")).hexdigest()
    record |= {"new_tokens": sum(cost.new_tokens for cost in costs), "truncated": cut, "cost": _cost(costs)}
    if keep:
        record["kept"] = encode_shares(made.kept or [])
        record["tokens"] = made.tokens
    return record


def _cost(made: Sequence[Generation]) -> dict[str, Any]:
    return {
        "seconds": sum(one.seconds for one in made),
        "ttft_seconds": made[0].ttft_seconds,
        "cache_bytes": made[0].cache_bytes,
        "peak_cache_bytes": max(one.peak_cache_bytes for one in made),
    }


def encode_shares(shares: Sequence[float]) -> str:
    """Writes shares 0..1 as one digit each. The digit is 0 only for a share of 0, and 9 only for a share of 1."""
    return "".join("0" if s <= 0 else "9" if s >= 1 - 1e-6 else str(max(1, min(8, round(s * 9)))) for s in shares)
