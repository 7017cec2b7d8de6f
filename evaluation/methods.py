"""From what a user writes (`--edition snapkv --budget 256`, `snapkv:budget=256`) to a policy of the registry.

"default" is the stock model. Every other name is asked from the registry; nothing here knows a method by name.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.patches.policy import Policy, policies, policy, policy_class

STOCK = "default"


@dataclass(frozen=True)
class Method:
    """A policy under the name it is shown by.

    Attributes:
        edition: "default" or a registered name.
        label: unique within a comparison.
        budget: what the sweep set, or None.
    """

    edition: str
    label: str
    policy: Policy | None
    budget: int | float | None = None


def editions() -> list[str]:
    """All names that `--edition` takes."""
    import distill  # noqa: F401  (registers the policies)

    return [STOCK, *policies()]


def make(edition: str, arguments: Mapping[str, Any], budget: int | float | None = None) -> Method:
    """The method of that name.

    Args:
        arguments: of the policy; those that are None are left to its defaults.
        budget: sets the policy's `budget`, or all entries of its `n_topks`.

    Raises:
        ValueError: unknown name, an argument that the method does not have, or a value it does not allow.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    if edition not in editions():
        raise ValueError(f"edition must be one of {', '.join(editions())}, not {edition!r}")
    if edition == STOCK:
        if given:
            raise ValueError(f"{_flag(next(iter(given)))} has no meaning for edition {STOCK}: it drops nothing")
        return Method(STOCK, STOCK, None)
    names = [field.name for field in dataclasses.fields(policy_class(edition))]
    for name in given:
        if name not in names:
            allowed = ", ".join(map(_flag, names))
            raise ValueError(f"{_flag(name)} has no meaning for edition {edition}; it takes {allowed}")
    swept = {} if budget is None else _budget(edition, given, budget)
    return Method(edition, _label(edition, given), policy(edition, **given | swept), budget)


def parse(text: str, budget: int | float | None = None) -> Method:
    """A method from `NAME` or `NAME:argument=value,argument=value`; values are JSON, bare words are strings.

    Raises:
        ValueError: as `make`, or text that does not have this form.
    """
    edition, _, rest = text.partition(":")
    return make(edition, parse_arguments(rest), budget)


def parse_arguments(text: str) -> dict[str, Any]:
    """`a=1,b=[2,3],c=word,d={"name":"x"}` as a dictionary.

    Raises:
        ValueError: the text does not have this form.
    """
    arguments: dict[str, Any] = {}
    place = 0
    while place < len(text):
        match = re.compile(r"(\w+)=").match(text, place)
        if match is None:
            raise ValueError(f"method arguments must look like name=value,name=[value,value], not {text[place:]!r}")
        value, place = _value(text, match.end())
        arguments[match.group(1)] = value
    return arguments


def _value(text: str, start: int) -> tuple[Any, int]:
    """The value that starts there, and where the next argument starts."""
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
        if text[end : end + 1] in ("", ","):
            return value, end + 1
    except json.JSONDecodeError:
        pass
    word = re.compile(r"[^,\[\]{}]+(?=,|$)").match(text, start)
    if word is None:
        raise ValueError(f"method arguments must look like name=value,name=[value,value], not {text[start:]!r}")
    return word.group(0), word.end() + 1


def parse_budget(text: str) -> int | float:
    """Tokens ("256") or a fraction of the prompt ("0.25").

    Raises:
        ValueError: neither.
    """
    try:
        value = int(text) if re.fullmatch(r"\d+", text) else float(text)
    except ValueError:
        value = 0
    if (isinstance(value, int) and value >= 1) or (isinstance(value, float) and 0 < value < 1):
        return value
    raise ValueError(f"budget must be tokens (an integer of at least 1) or a fraction in (0, 1), not {text!r}")


def _budget(edition: str, given: Mapping[str, Any], budget: int | float) -> dict[str, Any]:
    """The arguments that set a method's budget: its own, or that of the policy it wraps."""
    names = [field.name for field in dataclasses.fields(policy_class(edition))]
    if "budget" in names:
        return {"budget": budget}
    if "n_topks" in names:
        return {"n_topks": [budget] * max(1, len(given.get("selection_layers", ())))}
    inner = given.get("policy")
    if inner is not None:
        arguments = {"name": inner} if isinstance(inner, str) else dict(inner)
        return {"policy": arguments | _budget(arguments["name"], arguments, budget)}
    raise ValueError(f"edition {edition} has no budget to set; it takes {', '.join(names)}")


def _label(edition: str, given: Mapping[str, Any]) -> str:
    """The name, and every setting given that is not the default; the swept budget is told apart from it."""
    settings = []
    for field in dataclasses.fields(policy_class(edition)):
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        if field.name in given and given[field.name] != default:
            settings.append(f"{field.name}={json.dumps(given[field.name], separators=(',', ':'))}")
    return f"{edition}({', '.join(settings)})" if settings else edition


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
