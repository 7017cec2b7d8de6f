"""`distill methods`: every method, with its arguments, its paper and one line."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import textwrap

from distill.patches.policy import Policy, policies, policy_class

WIDTH = 110


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `distill methods`."""
    parser.add_argument("name", nargs="?", help="show all there is to say about this method")


def run(args: argparse.Namespace) -> int:
    """Prints the list, or one method in full."""
    if args.name is not None:
        print(explain(policy_class(args.name)))
    else:
        print("\n\n".join(summary(policy_class(name)) for name in policies()))
    return 0


def arguments(cls: type[Policy]) -> list[str]:
    """The arguments of a method, as they would be written in Python."""
    written = []
    for field in sorted(dataclasses.fields(cls), key=lambda field: field.kw_only is True):
        required = field.default is field.default_factory is dataclasses.MISSING
        written.append(
            field.name if required else f"{field.name}={getattr(field.default, 'name', repr(field.default))}"
        )
    return written


def first_sentence(cls: type[Policy]) -> str:
    """What a method does, in one line."""
    paragraph = " ".join(inspect.getdoc(cls).split("\n\n")[0].split())  # type: ignore[union-attr]
    return re.split(r"(?<=[.;])\s(?=[A-Za-z])", paragraph)[0].rstrip(".;")


def papers(cls: type[Policy]) -> list[str]:
    """Addresses named in a method's docstring, those of papers first."""
    found = dict.fromkeys(re.findall(r"https?://[^\s),;]+[^\s),;.]", inspect.getdoc(cls) or ""))
    return sorted(found, key=lambda address: "arxiv.org" not in address)


def summary(cls: type[Policy]) -> str:
    """Name, one line, arguments and paper."""
    lines = [first_sentence(cls), f"({', '.join(arguments(cls))})", *papers(cls)[:1]]
    wrapped = [textwrap.fill(line, WIDTH, initial_indent="    ", subsequent_indent="     ") for line in lines]
    return "\n".join([cls.name, *wrapped])


def explain(cls: type[Policy]) -> str:
    """The method's documentation, and that of the method it is built on, which explains shared arguments."""
    parts = [f"{cls.__name__}({', '.join(arguments(cls))})"]
    for base in cls.__mro__:
        if issubclass(base, Policy) and base is not Policy and base.__doc__ and dataclasses.fields(base):
            parts.append(f"{base.__name__}\n{textwrap.indent(inspect.getdoc(base) or '', '    ')}")
    return "\n\n".join(parts)
