"""What runs where: which laws hold for which methods, on which architectures. Said here, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..tiny import ARCHITECTURES, lasting_pair
from .methods import FEW, METHODS, Method

#: every method runs on these, which differ in how they project and normalise queries and keys
SOME = ("llama", "phi3", "qwen3")
#: so many of the few methods are tried on each architecture, under each law
PER_ARCHITECTURE = 1
LENGTH, BUDGET = 40, 12


@dataclass(frozen=True)
class Case:
    """One method on one architecture, as a law sees it."""

    method: Method
    arch: str
    implementation: str = "sdpa"

    def pair(self, budget: int = BUDGET, **settings: Any) -> tuple[Any, Any]:
        """The stock model, and ours under the method."""
        given = {"implementation": self.implementation} | settings
        return lasting_pair(self.arch, self.method.make(budget), **given)

    def model(self, budget: int = BUDGET, **settings: Any) -> Any:
        """Our model under the method."""
        return self.pair(budget, **settings)[1]


@dataclass(frozen=True)
class Law:
    """A law: it takes a `Case`, and fails if it does not hold.

    Attributes:
        cheap: it takes a few forward calls, and is tried more often, see `cells`.
        everywhere: all of the few methods are tried on each architecture.
        implementations: the attention implementations it is tried on.
    """

    holds: Callable[[Case], None]
    cheap: bool = False
    everywhere: bool = False
    implementations: tuple[str, ...] = ("sdpa",)


LAWS: dict[str, Law] = {}


def law(**settings: Any) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Decorator: adds a law to the matrix; arguments as for `Law`."""

    def add(holds: Callable[[Case], None]) -> Callable[[Case], None]:
        LAWS[holds.__name__] = Law(holds, **settings)
        return holds

    return add


def cells() -> list[tuple[str, str, str, str]]:
    """`(law, method, architecture, implementation)` of every test of the matrix.

    All laws hold for all methods, each on one of `SOME` (cheap laws: on all of them); and on all architectures, each
    for `PER_ARCHITECTURE` of the few methods (those that say `everywhere`: for all of them). Which ones is different
    from law to law.
    """
    found = []
    for number, (name, law) in enumerate(LAWS.items()):
        pairs = set()
        for place, method in enumerate(METHODS):
            wanted = SOME if law.cheap else (SOME[(place + number) % len(SOME)],)
            pairs |= {(method, arch) for arch in wanted}
        for place, arch in enumerate(ARCHITECTURES):
            few = range(len(FEW)) if law.everywhere else range(PER_ARCHITECTURE)
            pairs |= {(FEW[(place + number + offset) % len(FEW)], arch) for offset in few}
        found += [(name, *pair, kernel) for pair in sorted(pairs) for kernel in law.implementations]
    return found
