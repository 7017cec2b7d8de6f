"""Which rank each matrix gets, so that the file has a given size: the same share for all, or by marginal loss a byte.

Each matrix has a curve: what it would weigh, and what the loss would grow by, at each rank up to break-even,
and whole. Only the lower convex hull of a curve counts, since between two of its points nothing cheaper is
better. `adaptive` begins with the lowest ranks and goes on with whatever lowers the predicted loss most for
each byte, until the bytes are spent.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

#: what a tensor adds to the head of a safetensors file, at most, beside its name
HEAD = 112


@dataclass(frozen=True)
class Matrix:
    """A matrix that may become two factors.

    Attributes:
        name: of the module, or `"embedding"`.
        rows, columns: its shape.
        errors: growth of the loss (nats a token, to second order) that each singular value stands for, largest first;
            empty where it was not measured.
    """

    name: str
    rows: int
    columns: int
    errors: Sequence[float] = ()

    @property
    def weights(self) -> int:
        return self.rows * self.columns

    @property
    def most(self) -> int:
        """The break-even rank."""
        return (self.weights - 1) // (self.rows + self.columns)

    def factors(self, rank: int) -> int:
        """Weights of the two factors."""
        return rank * (self.rows + self.columns)

    def loss(self, rank: int | None) -> float:
        return 0.0 if rank is None else float(sum(self.errors[rank:]))


@dataclass(frozen=True)
class Limits:
    """What ranks are allowed.

    Attributes:
        floor: the lowest rank; a matrix whose break-even rank is below it stays whole.
        cap: the highest rank as a share of the break-even rank; above it a matrix stays whole.
        step: ranks are multiples of it, above the floor.
    Raises:
        ValueError: numbers that make no sense.
    """

    floor: int = 8
    cap: float = 1.0
    step: int = 8

    def __post_init__(self) -> None:
        if self.floor < 1 or self.step < 1:
            raise ValueError(f"floor, step: got {self.floor}, {self.step}; allowed are integers >= 1")
        if not 0 < self.cap <= 1:
            raise ValueError(f"cap: got {self.cap}; allowed are numbers above 0, up to 1 (break-even)")

    def ranks(self, matrix: Matrix) -> list[int]:
        """The ranks that a matrix may get, lowest first; none if it has to stay whole."""
        return list(range(self.floor, int(matrix.most * self.cap) + 1, self.step))


@dataclass(frozen=True)
class Plan:
    """A rank for each matrix, and what comes of it.

    Attributes:
        ranks: by name; what is not named stays whole.
        bytes: predicted size of the file of weights; what is written is measured again.
        before: that of the uncompressed one, in the same dtype.
        loss: predicted growth of the loss in nats a token, 0 where it was not measured. It adds up second-order
            terms: it ranks choices, and is no forecast once it is not small.
        matrices: the curves.
    """

    ranks: dict[str, int]
    bytes: int
    before: int
    loss: float
    matrices: tuple[Matrix, ...] = field(repr=False)

    @property
    def ratio(self) -> float:
        return self.before / self.bytes

    def table(self) -> str:
        """What each kind of matrix gets, as a Markdown table."""
        groups: dict[str, list[Matrix]] = {}
        for matrix in self.matrices:
            groups.setdefault(matrix.name.rpartition(".")[2], []).append(matrix)
        lines = [
            "| matrices | count | left whole | break-even | ranks (least, median, most) | weights kept | loss |",
            "| :-- | --: | --: | --: | --: | --: | --: |",
        ]
        for name, found in groups.items():
            ranks = [self.ranks[matrix.name] for matrix in found if matrix.name in self.ranks]
            kept = sum(
                matrix.factors(self.ranks[matrix.name]) if matrix.name in self.ranks else matrix.weights
                for matrix in found
            )
            spread = f"{min(ranks)}, {int(statistics.median(ranks))}, {max(ranks)}" if ranks else "-"
            loss = f"{sum(m.loss(self.ranks.get(m.name)) for m in found):.3f}" if all(m.errors for m in found) else "-"
            share = kept / sum(matrix.weights for matrix in found)
            lines.append(
                f"| {name} | {len(found)} | {len(found) - len(ranks)} | {found[0].most} | {spread} | {share:.3f} | "
                f"{loss} |"
            )
        lines.append(f"\n{self.before:,} -> {self.bytes:,} bytes of weights, {self.ratio:.3f}x")
        return "\n".join(lines)


class Infeasible(ValueError):
    """A target below what the limits allow; `best` is the smallest plan."""

    def __init__(self, target: int, best: Plan) -> None:
        self.best = best
        super().__init__(
            f"bytes: got {target:,}; allowed here are {best.bytes:,} and more, the size with every rank at its floor "
            f"({best.ratio:.2f}x), whatever that does to the quality"
        )


class Planner:
    """Spends bytes on matrices.

    Args:
        matrices: those that may become factors.
        rest: weights of everything else.
        itemsize: bytes of a weight in the file.
        names: of the tensors in the uncompressed file, for the size of its head.
        limits: which ranks are allowed.
        fixed: ranks, by name, that are not for it to choose.
    """

    def __init__(
        self,
        matrices: Sequence[Matrix],
        rest: int,
        itemsize: int,
        names: Sequence[str],
        limits: Limits | None = None,
        fixed: Mapping[str, int] | None = None,
    ) -> None:
        self.matrices, self.rest, self.itemsize = tuple(matrices), rest, itemsize
        self.limits, self.fixed = limits or Limits(), dict(fixed or {})
        self.head = 64 + sum(len(name) + HEAD for name in names)

    def plan(self, ranks: Mapping[str, int]) -> Plan:
        """The plan with these ranks."""
        weights, loss, more = self.rest, 0.0, 0
        for matrix in self.matrices:
            rank = ranks.get(matrix.name)
            weights += matrix.weights if rank is None else matrix.factors(rank)
            loss += matrix.loss(rank)
            more += 0 if rank is None else len(matrix.name) + HEAD + 16
        whole = self.rest + sum(matrix.weights for matrix in self.matrices)
        before = whole * self.itemsize + self.head
        return Plan(dict(ranks), weights * self.itemsize + self.head + more, before, loss, self.matrices)

    def ranks(self, matrix: Matrix) -> list[int]:
        """The ranks that a matrix may get, lowest first; none if it has to stay whole."""
        fixed = self.fixed.get(matrix.name)
        return self.limits.ranks(matrix) if fixed is None else [fixed]

    def smallest(self) -> Plan:
        """All ranks at the floor."""
        return self.plan({m.name: ranks[0] for m in self.matrices if (ranks := self.ranks(m))})

    def uniform(self, target: int) -> Plan:
        """The same share of the weights for every matrix.

        Raises:
            Infeasible: no share is small enough.
        """
        if (whole := self.plan(self.fixed)).bytes <= target:
            return whole

        def at(share: float) -> Plan:
            return self.plan({
                m.name: max(ranks[0], min(int(share * m.most), ranks[-1]))
                for m in self.matrices
                if (ranks := self.ranks(m))
            })  # fmt: skip

        low, high = 0.0, 1.0
        if at(low).bytes > target:
            raise Infeasible(target, at(low))
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if at(middle).bytes <= target else (low, middle)
        return at(low)

    def adaptive(self, target: int) -> Plan:
        """Ranks by marginal loss a byte.

        Raises:
            Infeasible: the lowest ranks are too many.
            ValueError: curves that were not measured.
        """
        if not all(matrix.errors for matrix in self.matrices):
            raise ValueError("ranks: got 'adaptive' without measured errors; allowed then is 'uniform'")
        best = self.smallest()
        if best.bytes > target:
            raise Infeasible(target, best)
        steps = []
        for number, matrix in enumerate(self.matrices):
            hull = self._hull(matrix)
            for place, (one, other) in enumerate(itertools.pairwise(hull)):
                cost = other[0] - one[0]
                steps.append(((one[1] - other[1]) / cost, number, place, cost, other[2]))
        ranks: dict[str, int | None] = dict(best.ranks)
        left, stopped = (target - best.bytes) // self.itemsize, set()
        for _, number, _, cost, rank in sorted(steps, key=lambda step: (-step[0], step[1], step[2])):
            if number in stopped:
                continue
            if cost > left:
                stopped.add(number)
                continue
            left -= cost
            ranks[self.matrices[number].name] = rank
        return self.plan({name: rank for name, rank in ranks.items() if rank is not None})

    def _hull(self, matrix: Matrix) -> list[tuple[int, float, int | None]]:
        """`(weights, loss, rank)` of a curve's lower convex hull, lightest first; rank `None` is the whole one."""
        ranks = self.ranks(matrix)
        if not ranks or matrix.name in self.fixed:
            return []
        tail = [0.0]
        for error in reversed(matrix.errors):
            tail.append(tail[-1] + error)
        tail.reverse()  # tail[r]: the loss at rank r
        points: list[tuple[int, float, int | None]] = [(matrix.factors(rank), tail[rank], rank) for rank in ranks]
        points.append((matrix.weights, 0.0, None))
        hull: list[tuple[int, float, int | None]] = []
        for point in points:
            while len(hull) > 1:
                (x0, y0, _), (x1, y1, _) = hull[-2:]
                # the middle point is not below the line between its neighbours
                if (y1 - y0) * (point[0] - x0) >= (point[1] - y0) * (x1 - x0):
                    hull.pop()
                else:
                    break
            hull.append(point)
        return hull
