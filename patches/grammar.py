"""How a method is written on a command line: `NAME`, `NAME:argument=value,argument=value`, and a budget beside it."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.patches.checks import MOST_TOKENS, shown
from distill.patches.policy import Policy, as_policy, policies, policy, policy_class

#: names of the stock model, which drops nothing
STOCK = ("default", "none", "stock")

_FORM = "name=value,name=[value,value]"


def method_names() -> list[str]:
    """All names that a command takes for a method, the stock model's first."""
    return [*STOCK, *policies()]


def parse_method(text: str, budget: int | float | None = None) -> Policy | None:
    """The policy that a text such as `snapkv:window_size=16` describes; `None` for the stock model.

    Args:
        text: `NAME`, `NAME:argument=value,argument=value` (values are JSON, bare words are strings), or a JSON file.
        budget: tokens or a share of the prompt, as `Policy.from_budget` takes it.
    Raises:
        ValueError: as `make_method`, or text that does not have this form.
    """
    if text.endswith(".json"):
        found = read_policy(text)
        return found if budget is None or found is None else found.with_budget(budget)
    name, _, rest = text.partition(":")
    return make_method(name, parse_arguments(rest), budget)


def make_method(name: str, arguments: Mapping[str, Any], budget: int | float | None = None) -> Policy | None:
    """The policy of that name with these arguments; `None` for the stock model.

    Raises:
        ValueError: unknown name, an argument that the method does not have, or a value it does not allow.
    """
    if name in STOCK:
        if arguments or budget is not None:
            given = next(iter(arguments), "budget")
            raise ValueError(f"{given}: got a value for {name}, the stock model, which drops nothing; allowed is none")
        return None
    if name not in policies():
        raise ValueError(f"method: got {shown(name)}; allowed are {', '.join(method_names())}")
    if budget is None:
        return policy(name, **arguments)
    if "budget" in arguments:
        raise ValueError(
            f"budget: got {shown(budget)}, and {shown(arguments['budget'])} as an argument; allowed is one"
        )
    return policy_class(name).from_budget(budget, **arguments)


def read_policy(value: Any) -> Policy | None:
    """As `as_policy`; a text or path that ends in `.json` is a file that holds a policy, or one as its `"policy"`.

    Raises:
        ValueError: no such file, no JSON in it, or no policy in that.
    """
    if not isinstance(value, (str, Path)) or not str(value).endswith(".json"):
        return as_policy(value)
    try:
        found = json.loads(Path(value).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"policy: got {value}, which cannot be read ({error}); allowed are JSON files") from error
    return as_policy(found["policy"] if isinstance(found, dict) and "policy" in found else found)


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
            raise ValueError(f"method: got {shown(text[place:])} as arguments; allowed is {_FORM}")
        value, place = _value(text, match.end())
        arguments[match.group(1)] = value
    return arguments


def _value(text: str, start: int) -> tuple[Any, int]:
    """The value that starts there, and where the next argument starts."""
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
        if text[end : end + 1] in ("", ","):
            return value, end + 1
    except (ValueError, RecursionError):  # no JSON, or an integer of thousands of digits, or nested too deep
        pass
    word = re.compile(r"[^,\[\]{}]+(?=,|$)").match(text, start)
    if word is None:
        raise ValueError(f"method: got {shown(text[start:])} as a value; allowed is {_FORM}")
    return word.group(0), word.end() + 1


def parse_budget(text: str) -> int | float:
    """Tokens ("256") or a share of the prompt ("0.25").

    Raises:
        ValueError: neither.
    """
    if re.fullmatch(r"[0-9]{1,12}", text) and 1 <= int(text) <= MOST_TOKENS:
        return int(text)
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise ValueError(
            f"budget: got {shown(text)}; allowed are integers from 1 to {MOST_TOKENS} (tokens) and numbers between "
            "0 and 1 (a share of the prompt)"
        )
    return share


def without_imports(argv: Sequence[str]) -> list[str]:
    """Imports what each `--import FILE_OR_MODULE` names, so that it registers methods; the other arguments.

    Raises:
        ValueError: nothing behind `--import`, or something that cannot be imported.
    """
    rest: list[str] = []
    given = iter(argv)
    for word in given:
        if word != "--import":
            rest.append(word)
            continue
        name = next(given, None)
        if name is None:
            raise ValueError("import: got nothing; allowed are a Python file and the name of a module")
        import_methods(name)
    return rest


def import_methods(name: str) -> None:
    """Imports a Python file, or a module by its name, for the methods that it registers.

    Raises:
        ValueError: it cannot be found, or importing it fails.
    """
    path = Path(name)
    try:
        if path.suffix != ".py":
            importlib.import_module(name)
            return
        if path.stem in sys.modules:
            return
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module  # a dataclass looks up its own module while it is made
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[path.stem]
            raise
    except Exception as error:
        raise ValueError(
            f"import: got {shown(name)}, which fails with {type(error).__name__}: {error}; allowed are a Python file "
            "and the name of a module"
        ) from error
