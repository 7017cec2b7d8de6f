"""Requests and responses. Unknown fields and wrong types are refused, never ignored or converted."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Word = Annotated[str, Field(min_length=1, max_length=500)]
Words = Annotated[list[Word], Field(max_length=200)]


class CompressRequest(BaseModel):
    """At most one of rate, reduce_rate, target_tokens and threshold; without any, half of the tokens are kept."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"context": ["A long text."], "rate": 0.5, "force_tokens": ["\n"]}]},
    )

    context: Annotated[str | list[str], Field(description="One text, or several.")]
    rate: Annotated[float, Field(gt=0, le=1, description="Share of tokens to keep.")] | None = None
    reduce_rate: Annotated[float, Field(ge=0, lt=1, description="Share of tokens to remove.")] | None = None
    target_tokens: Annotated[int, Field(ge=1, le=2**31, description="Tokens to keep, at most.")] | None = None
    threshold: Annotated[float, Field(ge=0, le=1, description="The least score that is kept.")] | None = None
    question: Annotated[str, Field(min_length=1, max_length=4000)] | None = None
    force_tokens: Annotated[Words, Field(description="Strings to keep wherever they occur.")] = []
    keywords: Annotated[Words, Field(description="Words to keep, in any case.")] = []
    keep_tags: Annotated[bool, Field(description="Whether <keep>...</keep> marks what stays.")] = True
    segments: Annotated[bool, Field(description="Whether code, JSON, questions and instructions pass through.")] = (
        False
    )
    scope: Annotated[Literal["each", "all"], Field(description="Each text has the budget, or all share one.")] = "each"
    on_over_budget: Literal["flag", "error"] = "flag"
    details: Annotated[bool, Field(description="Whether to return spans and anchors.")] = False

    @model_validator(mode="after")
    def one_budget(self) -> CompressRequest:
        """At most one way to say how much."""
        names = [n for n in ("rate", "reduce_rate", "target_tokens", "threshold") if getattr(self, n) is not None]
        if len(names) > 1:
            raise ValueError(f"give only one of {', '.join(names)}")
        return self

    @property
    def texts(self) -> list[str]:
        """The context as a list."""
        return [self.context] if isinstance(self.context, str) else self.context


class MaskUse(BaseModel):
    """What one mask asked for, and what it costs."""

    anchors: int
    tokens: int


class AnchorOut(BaseModel):
    """Characters [start, end) of a text that had to stay, and why."""

    start: int
    end: int
    mask: str
    label: str


class TextReport(BaseModel):
    """The counts of one text; spans and anchors only if details were asked for."""

    original_tokens: int
    tokens: int
    rate: float
    budget: int | None
    over_budget: bool
    masks: dict[str, MaskUse]
    notes: list[str]
    spans: list[tuple[int, int]] | None = None
    anchors: list[AnchorOut] | None = None


class CompressResponse(BaseModel):
    """`compressed_prompt`: the shortened texts, in the order of the context. `timings` in seconds."""

    compressed_prompt: list[str]
    reports: list[TextReport]
    counter: str
    exact: bool
    scorer: str
    timings: dict[str, float]


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str


class Health(BaseModel):
    """The server's state. `pending`: requests that wait or run."""

    status: Literal["ok"]
    scorer: str
    counter: str
    pending: int
    capacity: int
