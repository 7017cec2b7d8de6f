"""From what a user writes (`--edition snapkv --budget 256`, `snapkv:budget=256`) to a policy of the registry.

"default" is the stock model. Every other name is asked from the registry; nothing here knows a method by name.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.patches.grammar import make_method, parse_arguments, parse_budget
from distill.patches.policy import Policy, policies, policy_class

__all__ = ["STOCK", "Method", "editions", "make", "parse", "parse_arguments", "parse_budget"]

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
        budget: tokens, or a share of the prompt, that the method keeps; see `Policy.from_budget`.

    Raises:
        ValueError: unknown name, an argument that the method does not have, or a value it does not allow.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    made = make_method(edition, given, budget)
    return Method(STOCK, STOCK, None) if made is None else Method(edition, _label(edition, given), made, budget)


def parse(text: str, budget: int | float | None = None) -> Method:
    """A method from `NAME` or `NAME:argument=value,argument=value`; values are JSON, bare words are strings.

    Raises:
        ValueError: as `make`, or text that does not have this form.
    """
    edition, _, rest = text.partition(":")
    return make(edition, parse_arguments(rest), budget)


def _label(edition: str, given: Mapping[str, Any]) -> str:
    """The name, and every setting given that is not the default; the swept budget is told apart from it."""
    settings = []
    for field in dataclasses.fields(policy_class(edition)):
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        if field.name in given and given[field.name] != default:
            settings.append(f"{field.name}={json.dumps(given[field.name], separators=(',', ':'))}")
    return f"{edition}({', '.join(settings)})" if settings else edition
