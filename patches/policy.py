"""The contract of a method, and the registry of methods.

A `Policy` holds settings only: a frozen dataclass that can be written to JSON. What it learns while a prompt is read
lives in a `Run` (see `distill.patches.run`), made anew for every forward call, so one policy serves any number of
models, calls and threads.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from distill.patches.checks import check_budget, check_list, shown
from distill.patches.run import Call, Run
from distill.patches.show import policy_html

_REGISTRY: dict[str, type[Policy]] = {}

#: how deep policies may be nested in one another
DEPTH = 8


@dataclass(frozen=True)
class Policy:
    """Settings of one method. Subclasses are frozen dataclasses of JSON values, policies, or tuples of them.

    A subclass gives itself a `name`, registers itself with `@register`, and defines `begin` and `entries_kept`;
    `with_budget` and `from_budget` as well, unless its budget is an argument called `budget`.
    """

    name: ClassVar[str]

    def check(self, config: Any) -> None:
        """Raises a `ValueError` if this policy cannot run on a model of this config."""

    def begin(self, call: Call) -> Run | None:
        """The run for one forward call; `None` if this call drops nothing."""
        raise NotImplementedError

    def entries_kept(self, length: int, config: Any) -> list[int]:
        """How many cache entries a prompt leaves behind, over all heads, in each layer of a model.

        Args:
            length: tokens of the prompt, at least 1.
            config: the model's.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how many entries it keeps")

    def entries_left(self, length: int, reaching: list[int], config: Any) -> list[int]:
        """As `entries_kept`, where another policy lets fewer tokens through.

        Args:
            length, config: as in `entries_kept`.
            reaching: how many tokens of the prompt reach each layer.
        """
        return [self.entries_kept(tokens, config)[layer] for layer, tokens in enumerate(reaching)]

    def tokens_reaching(self, length: int, config: Any) -> list[int]:
        """How many tokens of a prompt each layer of a model computes; arguments as in `entries_kept`."""
        return [length] * config.num_hidden_layers

    def with_budget(self, budget: int | float) -> Policy:
        """This policy with another budget: tokens (an integer) or a share of the prompt (a float below 1).

        That is the argument `budget` or, where there is none, the budget of the argument `policy`.

        Raises:
            ValueError: a budget that is not allowed, or a method that has none.
        """
        check_budget("budget", budget)
        if _has(type(self), "budget"):
            return dataclasses.replace(self, **{"budget": budget})
        inner = getattr(self, "policy", None)
        if not isinstance(inner, Policy):
            raise ValueError(f"budget: got {shown(budget)} for {self.name}, which has no budget; allowed is none")
        return dataclasses.replace(self, **{"policy": inner.with_budget(budget)})

    def for_tokenizer(self, tokenizer: Any) -> Policy:
        """This policy, ready for a model's tokenizer: methods that give the model words get these as its token ids.

        Most have none; policies within this one are asked.
        """
        changed: dict[str, Any] = {}
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Policy):
                new: Any = value.for_tokenizer(tokenizer)
            elif isinstance(value, tuple) and any(isinstance(item, Policy) for item in value):
                new = tuple(item.for_tokenizer(tokenizer) for item in value)
            else:
                continue
            if new != value:
                changed[f.name] = new
        return dataclasses.replace(self, **changed) if changed else self

    @classmethod
    def from_budget(cls, budget: int | float, **arguments: Any) -> Policy:
        """The policy with these arguments and this budget, also where it has no default for the latter.

        Raises:
            ValueError: as `policy` and `with_budget`.
        """
        if _has(cls, "budget"):
            return policy(cls.name, **arguments | {"budget": budget})
        inner = arguments.get("policy")
        if isinstance(inner, dict) and "name" in inner:
            rest = {name: value for name, value in inner.items() if name not in ("name", "module", "budget")}
            return policy(cls.name, **arguments | {"policy": policy_class(inner["name"]).from_budget(budget, **rest)})
        return policy(cls.name, **arguments).with_budget(budget)

    def to_dict(self) -> dict[str, Any]:
        """JSON form: `{"name": ..., argument: value, ...}`.

        For a method that is not distill's own, `"module"` says what to import before it can be read.
        """
        module = type(self).__module__
        own = {} if module.startswith("distill.") else {"module": module}
        return {"name": self.name} | own | {f.name: _to_json(getattr(self, f.name)) for f in dataclasses.fields(self)}

    def _repr_html_(self) -> str:
        """The arguments as a table, for notebooks."""
        return policy_html(self)


def _has(cls: type[Policy], argument: str) -> bool:
    return argument in {field.name for field in dataclasses.fields(cls)}


def _to_json(value: Any) -> Any:
    if isinstance(value, Policy):
        return value.to_dict()
    return [_to_json(item) for item in value] if isinstance(value, tuple) else value


def _from_json(argument: str, value: Any, depth: int) -> Any:
    """The value of an argument; in place of a dictionary, and of each one in a list, the policy that it describes."""
    try:
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            check_list(argument, value, "policies")
            return tuple(as_policy(item, depth) for item in value)
        return as_policy(value, depth) if isinstance(value, dict) else value
    except ValueError as error:
        if argument == "policy":
            raise
        raise ValueError(f"{argument}: got {shown(value)}, which is not a policy ({error})") from error


P = TypeVar("P", bound=type[Policy])


def register(cls: P) -> P:
    """Class decorator: makes a policy known by its `name`.

    Raises:
        ValueError: another class has that name.
    """
    if _REGISTRY.setdefault(cls.name, cls) is not cls:
        raise ValueError(f"name: got {cls.name!r}, which is {_REGISTRY[cls.name].__name__}; allowed are other names")
    return cls


@cache
def _discover() -> None:
    """Imports what installed packages declare as entry points of the group `distill.methods`, once."""
    for entry in entry_points(group="distill.methods"):
        try:
            entry.load()
        except Exception as error:
            raise ValueError(
                f"distill.methods: got the entry point {entry.name!r} of an installed package, which fails with "
                f"{type(error).__name__}: {error}; allowed are modules that can be imported ({entry.value})"
            ) from error


def policies() -> list[str]:
    """Names of all registered policies."""
    _discover()
    return sorted(_REGISTRY)


def policy_class(name: str) -> type[Policy]:
    """The class registered as `name`.

    Raises:
        ValueError: no such name; the message lists those that exist.
    """
    if isinstance(name, str) and name not in _REGISTRY:
        _discover()
    if not isinstance(name, str) or name not in _REGISTRY:
        raise ValueError(
            f"policy: got {shown(name)}; allowed are {', '.join(policies())}, and names of your own methods once the "
            "module that registers them has been imported"
        )
    return _REGISTRY[name]


def policy(name: str, **arguments: Any) -> Policy:
    """Makes the policy registered as `name`.

    Raises:
        ValueError: unknown name, unknown or missing argument, or a value that is not allowed.
    """
    return _made(name, arguments, depth=0)


def _made(name: Any, arguments: dict[str, Any], depth: int) -> Policy:
    cls = policy_class(name)
    fields = {f.name: f for f in sorted(dataclasses.fields(cls), key=lambda field: field.kw_only is True)}
    unknown = sorted(str(argument) for argument in arguments if argument not in fields)
    if unknown:
        raise ValueError(f"{unknown[0]}: got an argument that {name} does not have; allowed are {', '.join(fields)}")
    required = [n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING]
    missing = [n for n in required if n not in arguments]
    if missing:
        raise ValueError(f"{missing[0]}: got nothing, and {name} has no default for it; see `distill methods {name}`")
    return cls(**{argument: _from_json(argument, value, depth + 1) for argument, value in arguments.items()})


def as_policy(value: Any, depth: int = 0) -> Policy | None:
    """Reads a policy given as an object, its JSON form, its name (if its arguments have defaults) or `None`.

    Args:
        depth: how many policies stand around this one.
    Raises:
        ValueError: anything else, or policies nested more than `DEPTH` deep.
    """
    if depth >= DEPTH:
        raise ValueError(f"policy: got policies nested more than {DEPTH} deep; allowed are up to {DEPTH}")
    if value is None or isinstance(value, Policy):
        return value
    if isinstance(value, str):
        return policy(value)
    if isinstance(value, dict) and "name" in value and all(isinstance(key, str) for key in value):
        if isinstance(value["name"], str) and value["name"] not in _REGISTRY and "module" in value:
            raise ValueError(
                f"policy: got {shown(value['name'])}, a method that is not distill's own; allowed once the module "
                f"{shown(value['module'])}, which registers it, has been imported"
            )
        return _made(value["name"], {key: item for key, item in value.items() if key not in ("name", "module")}, depth)
    raise ValueError(f"policy: got {shown(value)}; allowed are a Policy, its name, its to_dict() form, and None")


def budget_tokens(budget: int | float, lengths: Tensor) -> Tensor:
    """Tokens a budget allows in rows of the given lengths `(batch,)`: fractions are rounded down, to at least one."""
    if isinstance(budget, int):
        return torch.full_like(lengths, budget)
    return (lengths.double() * budget).long().clamp(min=1)
