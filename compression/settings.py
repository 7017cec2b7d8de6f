"""What a run of `distill shrink` is asked for; read from a preset, a file, or a configuration of another program."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from distill.compression.plan import Limits
from distill.compression.quantize import BITS
from distill.compression.recover import Recipe

CONFIGS = Path(__file__).parent / "configs"
METHODS, RANKS = ("whitened", "plain"), ("adaptive", "uniform")
TRANSFORMS = ("embedding_factorization", "kv_low_rank", "low_rank", "recover")
#: settings of `recover`
TAUGHT = ("rate", "hidden", "lora", "restart")
DTYPES = ("auto", "float32", "bfloat16", "float16")
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Settings:
    """One run. Exactly one of `bytes` and `ratio` is the target; `bits` alone needs none.

    Attributes:
        bytes: of the file of weights.
        ratio: bytes of the uncompressed file of weights, in the dtype that is written, over bytes of the compressed.
        transforms: what is done, in this order; names of `TRANSFORMS`. None named: `low_rank`, if there is a target.
            Without a target it may be `recover` alone: then the norms of the quantized model are taught.
        bits: of the linear layers' weights in the end, 8 or 4, see `distill.compression.quantize`; `None` leaves them
            as they are. The target is of the file before that. 4 bits go with no target: kernels for them refuse
            most ranks.
        method: of `low_rank`: whitened by the inputs' second moments, or plain SVD.
        ranks: by marginal loss a byte, or the same share for all.
        kv_share: of `kv_low_rank`: the share of the KV bytes a token that a `LatentCache` is to hold.
        floor, cap, step: limits of ranks, see `distill.compression.plan.Limits`.
        windows, length: of calibration text.
        dtype: of the weights that are written; `auto` for that of the checkpoint.
        recover_steps: steps of distillation from the original model.
        rate, hidden, lora, restart: how it is taught, see `distill.compression.recover.Recipe`.
        quality: the perplexity on the held-out end of the calibration text may be so many times the original's; if it
            is more, nothing is written.
        seed: of what is drawn.
    """

    bytes: int | None = None
    ratio: float | None = None
    transforms: tuple[str, ...] = ()
    bits: int | None = None
    method: str = "whitened"
    ranks: str = "adaptive"
    kv_share: float = 0.5
    floor: int = 8
    cap: float = 1.0
    step: int = 8
    windows: int = 16
    length: int = 512
    dtype: str = "auto"
    recover_steps: int = 200
    rate: float = 1e-4
    hidden: float = 0.0
    lora: int = 0
    restart: int = 0
    quality: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        aimed = self.bytes is not None or self.ratio is not None
        if self.bits is not None and self.bits not in BITS:
            raise ValueError(f"bits: got {self.bits!r}; allowed are 8 and 4")
        if (self.bytes is not None and self.ratio is not None) or not (aimed or self.bits):
            raise ValueError("bytes, ratio: got both or neither; allowed is exactly one of the two, or bits alone")
        if aimed and self.bits == 4:
            raise ValueError("bits: got 4 with a target; allowed is 8, or 4 alone")
        object.__setattr__(self, "transforms", tuple(self.transforms) or (("low_rank",) if aimed else ()))
        if not aimed and self.transforms not in ((), ("recover",)):
            raise ValueError(f"bytes, ratio: got neither for {', '.join(self.transforms)}; allowed is one of the two")
        if self.bytes is not None and not _positive(self.bytes):
            raise ValueError(f"bytes: got {self.bytes!r}; allowed are integers above 0, or sizes such as 200MB")
        if self.ratio is not None and not (_positive(self.ratio) and self.ratio > 1):
            raise ValueError(
                f"ratio: got {self.ratio!r}; allowed are numbers above 1 (bytes before over bytes after, of the file)"
            )
        for name, allowed in (("method", METHODS), ("ranks", RANKS), ("dtype", DTYPES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: got {getattr(self, name)!r}; allowed are {', '.join(allowed)}")
        unknown = [name for name in self.transforms if name not in TRANSFORMS]
        if (
            unknown
            or (aimed and "low_rank" not in self.transforms)
            or len(set(self.transforms)) < len(self.transforms)
        ):
            raise ValueError(
                f"transforms: got {list(self.transforms)}; allowed are {', '.join(TRANSFORMS)}, each once, low_rank "
                "among them"
            )
        if "recover" in self.transforms[:-1]:
            raise ValueError(f"transforms: got {list(self.transforms)}; allowed is recover at the end only")
        if "low_rank" in self.transforms and "kv_low_rank" in self.transforms[self.transforms.index("low_rank") :]:
            raise ValueError(f"transforms: got {list(self.transforms)}; allowed is kv_low_rank before low_rank")
        if not (_positive(self.kv_share) and self.kv_share < 1):
            raise ValueError(f"kv_share: got {self.kv_share!r}; allowed are numbers above 0 and below 1")
        for name, transform in (*((n, "recover") for n in TAUGHT), ("kv_share", "kv_low_rank")):
            if getattr(self, name) != getattr(type(self), name) and transform not in self.transforms:
                raise ValueError(f"{name}: got {getattr(self, name)!r} without {transform}; allowed with it only")
        if self.lora and not aimed:
            raise ValueError(f"lora: got {self.lora} without a target; allowed then is 0, the norms are taught")
        if self.bits is not None and "kv_low_rank" in self.transforms:
            raise ValueError(
                f"bits: got {self.bits} with kv_low_rank; allowed is none, a LatentCache needs them whole"
            )
        for name in ("windows", "length", "recover_steps"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)!r}; allowed are integers >= 1")
        if self.quality is not None and not (_positive(self.quality) and self.quality >= 1):
            raise ValueError(f"quality: got {self.quality!r}; allowed are numbers >= 1 (times the perplexity before)")
        self.limits, self.recipe  # noqa: B018 - checks them

    @property
    def limits(self) -> Limits:
        return Limits(self.floor, self.cap, self.step)

    @property
    def recipe(self) -> Recipe:
        return Recipe(rate=self.rate, hidden=self.hidden, lora=self.lora, restart=self.restart)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"transforms": list(self.transforms)}


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def size(text: Any) -> int:
    """Bytes of a size such as `200MB` (10^6), `190MiB` (2^20), `200000000`.

    Raises:
        ValueError: another text.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?B)?\s*", str(text).upper())
    unit = _UNITS.get((match.group(2) or "").upper()) if match else None
    if match is None or unit is None or float(match.group(1)) * unit < 1:
        raise ValueError(f"bytes: got {text!r}; allowed are sizes such as 200MB, 190MiB, 200000000")
    return int(float(match.group(1)) * unit)


def presets() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def read_config(path: str | Path) -> tuple[dict[str, Any], list[str]]:
    """Values for `Settings` from a YAML file or a preset's name, and notes on what was understood in another way.

    Raises:
        ValueError: no such file, no mapping in it, or unknown names.
    """
    import yaml

    file = Path(path)
    if not file.exists():
        file = CONFIGS / (file.name if file.suffix else f"{file.name}.yaml")
    if not file.exists():
        raise ValueError(f"config: got {str(path)!r}; allowed are YAML files, and {', '.join(presets())}")
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config: got {file}, which cannot be read ({error}); allowed is YAML") from error
    if not isinstance(found, dict):
        raise ValueError(f"config: got {file} with {type(found).__name__}; allowed are mappings of names to values")
    values, notes = from_branches(found) if "branches" in found else (dict(found), [])
    names = {field.name for field in fields(Settings)}
    if unknown := sorted(set(values) - names):
        raise ValueError(f"config: got {', '.join(unknown)}; allowed are {', '.join(sorted(names))}, branches")
    if "bytes" in values:
        values["bytes"] = size(values["bytes"])
    return values, notes


#: what a branch of the other program is here
_BRANCHES = {
    "lra": "lra: `low_rank`. Its ranks come from the planner: a target in bytes decides them.",
    "kv": (
        "kv: `kv_low_rank`. The KV cache is smaller where the model is run with "
        "`past_key_values=LatentCache(model)`; any other cache stays as large as it was."
    ),
    "blt": "blt: `embedding_factorization`, one pair of factors; a tied head keeps the tie.",
    "sparsity": (
        "sparsity: left out. Zeros in a dense file are no fewer bytes, and no maintained runtime stores them as "
        "fewer; `distill.compression.prune` measures what they would cost."
    ),
}


def from_branches(found: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Reads a configuration with `branches: lra, kv, blt, sparsity`, as a list, or a mapping to settings or switches.

    Returns:
        values for `Settings`, and a note for each thing that means something else here.
    Raises:
        ValueError: a branch of another name, or none that makes the file smaller.
    """
    given = found["branches"]
    if isinstance(given, str):
        given = [name.strip() for name in given.split(",")]
    branches: dict[str, Any] = dict(given) if isinstance(given, Mapping) else dict.fromkeys(given or [], True)
    on = [
        name
        for name, value in branches.items()
        if value not in (False, None) and not (isinstance(value, Mapping) and value.get("enabled") is False)
    ]
    if unknown := [name for name in branches if name not in _BRANCHES]:
        raise ValueError(f"branches: got {', '.join(map(str, unknown))}; allowed are {', '.join(_BRANCHES)}")
    notes = [_BRANCHES[name] for name in on]
    known = {"blt": "embedding_factorization", "kv": "kv_low_rank"}
    transforms = [name for branch, name in known.items() if branch in on]
    if {"lra", "kv"} & set(on):
        transforms.append("low_rank")
    else:
        raise ValueError(f"branches: got {', '.join(on) or 'none'}; allowed are lists with lra or kv among them")
    values: dict[str, Any] = {"transforms": transforms}
    own = {field.name for field in fields(Settings)}
    for name, value in found.items():
        if name in ("ratio", "target_ratio"):
            values["ratio"] = value
            notes.append(
                f"{name}: read as bytes before over bytes after of the one file. Ratios of different tensors are not "
                "multiplied."
            )
        elif name in own:
            values[name] = value
        elif name != "branches":
            notes.append(f"{name}: not used.")
    for name in on:
        own_settings = branches[name]
        if isinstance(own_settings, Mapping) and (extra := sorted(set(own_settings) - {"enabled"})):
            notes.append(f"{name}: its {', '.join(extra)} not used; the planner decides.")
    notes.append("branches are done one after the other, each on what the one before left, and are not averaged.")
    return values, notes
