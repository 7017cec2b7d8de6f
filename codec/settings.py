"""What decides how a file is coded; all of it stands in the file's head."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from distill.codec.coder import default_engine, engine
from distill.codec.corrector import PARTS
from distill.codec.ranks import PACKERS

CODECS = ("ac", "rank")


@dataclass(frozen=True)
class Settings:
    """How to code.

    Args:
        codec: `ac`, arithmetic coding of probabilities, or `rank`, places in the model's list of guesses.
        engine: whose arithmetic coder; by default constriction where it is installed.
        packer: what packs the ranks, one of `ranks.PACKERS`.
        context: most tokens that a prediction looks back at.
        overlap: of these, how many a new window begins with when the old one is full.
        block: bytes of a block. Blocks know nothing of one another.
        batch: blocks that are coded in lock step.
        portable: float64 and coarsely rounded scores, so that another machine comes to the same numbers.
        correct: parts of the corrective layer, of `corrector.PARTS`.
        layout: unwrap hard-wrapped text.
        learn: rate at which the model itself goes on learning from the text, a step of Adam each time a window is
            full; 0 for none. Needs a batch of 1, since blocks that learn together would need one another.
        threads: of torch, in both directions.

    Raises:
        ValueError: a value that is not allowed.
    """

    codec: str = "ac"
    engine: str = ""
    packer: str = "brotli"
    context: int = 1024
    overlap: int = 640
    block: int = 32768
    batch: int = 8
    portable: bool = False
    correct: tuple[str, ...] = PARTS
    layout: bool = True
    threads: int = 1
    learn: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "engine", self.engine or default_engine())
        object.__setattr__(self, "correct", tuple(self.correct))
        engine(self.engine)
        for name, allowed in (("codec", CODECS), ("packer", tuple(PACKERS))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: got {getattr(self, name)!r}; allowed are {', '.join(allowed)}")
        if wrong := [part for part in self.correct if part not in PARTS]:
            raise ValueError(f"correct: got {', '.join(wrong)}; allowed are {', '.join(PARTS)}")
        limits = {"context": (4, 1 << 20), "block": (1, 1 << 30), "batch": (1, 4096), "threads": (1, 1024)}
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name}: got {getattr(self, name)}; allowed are {least} to {most}")
        if not 0 <= self.learn <= 0.1:
            raise ValueError(f"learn: got {self.learn}; allowed are 0 to 0.1")
        if self.learn and self.batch > 1:
            raise ValueError(f"learn: got {self.learn} with a batch of {self.batch}; allowed with a batch of 1")
        if not 2 <= self.overlap < self.context:
            raise ValueError(f"overlap: got {self.overlap}; allowed are 2 to context - 1, {self.context - 1}")

    @property
    def grid(self) -> int:
        """Bits after the binary point that scores are rounded to, in natural-logarithm units."""
        return 5 if self.portable else 10

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self) | {"correct": list(self.correct)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Settings:
        """From the head of a file.

        Raises:
            ValueError: a setting that this version does not know, or a value that is not allowed.
        """
        values = {"learn": 0.0} | values  # files of before there was this setting
        known = {field.name for field in fields(cls)}
        if set(values) != known:
            raise ValueError(
                f"settings: got {sorted(set(values) ^ known)} too many or too few; this is another version"
            )
        return cls(**values)
