"""The fields of requests and answers. Unknown fields and values of another type are refused, never ignored."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from distill.pruning.masks.choice import ANCHORS

# JSON Schema calls 3.0 an integer
_WHOLE = BeforeValidator(lambda v: int(v) if isinstance(v, float) and v.is_integer() else v)
Tokens = Annotated[int, Field(ge=1, le=2**31 - 1, description="Tokens to keep, at most."), _WHOLE]
Word = Annotated[str, Field(min_length=1, max_length=500)]
Words = Annotated[list[Word], Field(max_length=200)]
# other spellings of these (such as plurals) are understood too
AnchorName = Annotated[str, Field(max_length=100), WithJsonSchema({"type": "string", "enum": list(ANCHORS)})]


MOST_CONTEXTS = 256
BUDGETS = ("rate", "reduce_rate", "target_tokens", "threshold")


def _both(*names: str) -> dict[str, Any]:
    """JSON Schema for an object in which some fields are given; null, and False for `segments`, is as if absent."""
    given = {name: {"const": True} if name == "segments" else {"type": "number"} for name in names}
    return {"required": list(names), "properties": given}


class CompressRequest(BaseModel):
    """Texts to shorten. At most one of rate, reduce_rate, target_tokens and threshold; without any, half is kept."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [{"context": ["A long text."], "rate": 0.5, "force_tokens": ["\n"]}],
            "not": {
                "anyOf": [_both(a, b) for a, b in (*itertools.combinations(BUDGETS, 2), ("threshold", "segments"))]
            },
        },
    )

    context: Annotated[
        str | Annotated[list[str], Field(max_length=MOST_CONTEXTS)], Field(description="One text, or several.")
    ]
    rate: Annotated[float, Field(gt=0, le=1, description="Share of tokens to keep.")] | None = None
    reduce_rate: Annotated[float, Field(ge=0, lt=1, description="Share of tokens to remove.")] | None = None
    target_tokens: Tokens | None = None
    threshold: Annotated[float, Field(ge=0, le=1, description="The least score that is kept.")] | None = None
    question: Annotated[str, Field(min_length=1, max_length=4000, pattern=r"\S")] | None = None
    force_tokens: Annotated[Words, Field(description="Strings to keep wherever they occur.")] = []
    keywords: Annotated[Words, Field(description="Words to keep, in any case.")] = []
    keep_tags: Annotated[bool, Field(description="Whether <keep>...</keep> marks what stays.")] = True
    segments: Annotated[
        bool | None, Field(description="null: code, JSON, questions and instructions stay; false: all text is alike.")
    ] = None
    anchors: (
        Annotated[
            list[AnchorName], Field(max_length=100, description="Rules and kinds of names that hold; null for all.")
        ]
        | None
    ) = None
    scope: Annotated[Literal["each", "all"], Field(description="Each text has the budget, or all share one.")] = "each"
    on_over_budget: Literal["flag", "error"] = "flag"
    details: Annotated[
        bool, Field(description="Whether to return spans and anchors; for up to 100,000 characters.")
    ] = False

    @property
    def texts(self) -> list[str]:
        """The context as a list."""
        return [self.context] if isinstance(self.context, str) else self.context


#: a part of a message's content; one of text has a `text`
_PART = {
    "type": "object",
    "required": ["type"],
    "anyOf": [
        {"properties": {"type": {"const": "text"}, "text": {"type": "string"}}, "required": ["text"]},
        {"properties": {"type": {"enum": ["image_url", "input_audio", "file"]}}},
    ],
}
Message = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "type": "object",
            "required": ["role"],
            "properties": {
                "role": {"type": "string"},
                "content": {"anyOf": [{"type": "string"}, {"type": "null"}, {"type": "array", "items": _PART}]},
            },
        }
    ),
]


class ChatRequest(BaseModel):
    """A chat to shorten, in the form of the OpenAI API. Its system messages and last user turn stay as they are."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"not": {"anyOf": [_both(a, b) for a, b in itertools.combinations(BUDGETS[:3], 2)]}},
    )

    messages: Annotated[list[Message], Field(max_length=2000, description="Messages with role and content.")]
    rate: Annotated[float, Field(gt=0, le=1, description="Share of tokens to keep of each text.")] | None = None
    reduce_rate: Annotated[float, Field(ge=0, lt=1, description="Share of tokens to remove.")] | None = None
    target_tokens: Tokens | None = None
    roles: Annotated[
        dict[str, Annotated[float, Field(gt=0, le=1)]], Field(description="Shares by role; 1 protects.")
    ] = {}
    keep_last: Annotated[int, Field(ge=0, le=10_000, description="User turns that stay, from the last."), _WHOLE] = 1
    query_aware: Annotated[bool, Field(description="Whether the last user turn decides what stays.")] = False
    keep_tags: bool = True
    on_over_budget: Literal["flag", "error"] = "flag"


class ChatResponse(BaseModel):
    """The shortened chat: as many messages as were sent, and tokens of all texts before and after."""

    messages: list[dict[str, Any]]
    original_tokens: int
    tokens: int
    rate: float
    over_budget: bool
    notes: list[str]


class MaskUse(BaseModel):
    """How many stretches one mask asked for, and what they cost."""

    anchors: int
    tokens: int


class AnchorOut(BaseModel):
    """Characters [start, end) of a text that had to stay, which mask wanted them, and why."""

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
    """The shortened texts, in the order of the context, with a report on each. Timings are in seconds."""

    compressed_prompt: list[str]
    reports: list[TextReport]
    counter: str
    exact: bool
    scorer: str
    timings: dict[str, float]


class Fault(BaseModel):
    """One thing that is wrong with a request: the field (loc), what is wrong (msg), and the kind of error (type)."""

    loc: list[str | int]
    msg: str
    type: str


class Faults(BaseModel):
    """What is wrong with a request, field by field."""

    detail: list[Fault]


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str


class Health(BaseModel):
    """The server's state: what it works with, requests that wait or run, and the largest request in bytes."""

    status: Literal["ok"]
    scorer: str
    counter: str
    pending: int
    capacity: int
    max_body: int
