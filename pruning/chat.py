"""Chats: messages in, messages out. What the system and the last turn of the user say is never shortened."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from distill.pruning.checks import BadArgument, bad, check_text, number, shown, whole
from distill.pruning.masks.user import strip_keep_tags
from distill.pruning.result import Result

if TYPE_CHECKING:
    from distill.pruning.engine import Distill

MOST_MESSAGES = 10_000
PROTECTED_ROLES = frozenset({"system", "developer"})


@dataclass(frozen=True)
class ChatResult:
    """A shortened chat.

    Args:
        messages: the messages, as many as were given and in their order; only texts differ.
        results: for each text that was shortened, the number of its message, the number of its part (0 where the
            content is a string), and the result.
        original_tokens: tokens of all texts of the chat, without the marks that a chat template adds.
        tokens: tokens that are left.
        notes: sentences that a reader should know.
    """

    messages: list[dict[str, Any]]
    results: list[tuple[int, int, Result]]
    original_tokens: int
    tokens: int
    notes: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """The share of the tokens that stayed; 1.0 for a chat without texts."""
        return self.tokens / self.original_tokens if self.original_tokens else 1.0

    @property
    def over_budget(self) -> bool:
        """Whether some text is over its budget."""
        return any(result.over_budget for *_, result in self.results)

    def to_dict(self) -> dict[str, Any]:
        """The chat and its counts as values that JSON can hold."""
        return {
            "messages": self.messages,
            "original_tokens": self.original_tokens,
            "tokens": self.tokens,
            "rate": self.rate,
            "over_budget": self.over_budget,
            "notes": self.notes,
        }


def check_messages(messages: object, name: str = "messages") -> list[dict[str, Any]]:
    """A copy of some messages, if they have the form of the OpenAI API.

    A message is a dict with a string `role` and a `content` that is a string, None, or a list of parts; parts with
    `"type": "text"` have a `text`. All other fields are left as they are.

    Args:
        messages: what came.
        name: the argument.

    Raises:
        ValueError: another form, naming the message.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise bad(name, messages, "lists of messages such as {'role': 'user', 'content': 'A text.'}")
    if len(messages) > MOST_MESSAGES:
        raise BadArgument(name, f"{len(messages)} messages", f"up to {MOST_MESSAGES}")
    found = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise bad(f"{name}[{i}]", message, "dicts with a role and a content")
        content = message.get("content")
        if isinstance(content, str):
            check_text(content, f"{name}[{i}]['content']")
        elif isinstance(content, Sequence) and not isinstance(content, bytes):
            for part in content:
                if not isinstance(part, Mapping):
                    raise bad(f"{name}[{i}]['content']", part, "strings, None, and lists of parts")
                if part.get("type") == "text":
                    check_text(part.get("text"), f"{name}[{i}]['content']")
        elif content is not None:
            raise bad(f"{name}[{i}]['content']", content, "strings, None, and lists of parts")
        found.append(copy.deepcopy(dict(message)))
    return found


def check_roles(roles: object) -> dict[str, float]:
    """Shares to keep by role, above 0 and up to 1; 1 protects a role.

    Raises:
        ValueError: no mapping of strings to such numbers.
    """
    if roles is None:
        return {}
    if not isinstance(roles, Mapping):
        raise bad("roles", roles, "shares by role such as {'tool': 0.3}")
    found = {}
    for role, share in roles.items():
        if not isinstance(role, str):
            raise BadArgument("roles", f"the role {shown(role)}", "strings")
        found[role] = number(f"roles[{role!r}]", share, 0, 1, above=True, meaning="the share to keep")
    return found


def compress_messages(
    distill: Distill,
    messages: Sequence[Mapping[str, Any]],
    rate: float | None = None,
    *,
    roles: Mapping[str, float] | None = None,
    keep_last: int = 1,
    query_aware: bool = False,
    **options: Any,
) -> ChatResult:
    """Shortens the texts of a chat.

    Messages of the system (and developer), the last `keep_last` turns of the user and whatever follows the last of
    these that is no tool result stay as they are, but for keep tags. So do calls of tools, images, names and
    identifiers.

    Args:
        distill: shortens.
        messages: the chat, in the form of the OpenAI API.
        rate: share of the tokens to keep of each text.
        roles: shares for some roles, such as `{"tool": 0.3, "assistant": 0.5}`; 1 protects a role, and a share below 1
            for `"system"` or `"user"` lifts their protection.
        keep_last: how many turns of the user are protected, from the last.
        query_aware: whether the last turn of the user decides, as a question, which sentences stay.
        **options: the options of `Distill.compress_many`, but for `scope` and `question`.

    Raises:
        ValueError: an argument that is not allowed, by name.
    """
    found, shares = check_messages(messages), check_roles(roles)
    keep_last = whole("keep_last", keep_last, 0, MOST_MESSAGES)
    if "scope" in options:
        raise bad("scope", options["scope"], "none here: each text has its own budget")
    users = [i for i, message in enumerate(found) if message["role"] == "user"]
    last = set(users[len(users) - keep_last :]) if keep_last else set()
    question = _text_of(found[users[-1]]) if users and query_aware else None
    tags = options.get("keep_tags", True)
    groups: dict[float | None, list[tuple[int, int, str]]] = {}
    kept: list[str] = []
    for i, message in enumerate(found):
        for j, text in _texts(message):
            role = message["role"]
            safe = role in PROTECTED_ROLES or i in last or (role == "assistant" and users and i > users[-1])
            if shares.get(role) == 1 or (safe and role not in shares):
                plain = strip_keep_tags(text, f"messages[{i}]['content']").text if tags is True else text
                _put(message, j, plain)
                kept.append(plain)
            else:
                groups.setdefault(shares.get(role), []).append((i, j, text))
    results: list[tuple[int, int, Result]] = []
    budgets = ("reduce_rate", "target_tokens", "threshold")
    for share, texts in groups.items():
        mine = {k: v for k, v in options.items() if share is None or k not in budgets}
        if question and question.strip():
            mine["question"] = question
        done = distill.compress_many([text for *_, text in texts], rate if share is None else share, **mine)
        results += [(i, j, result) for (i, j, _), result in zip(texts, done, strict=True)]
    if not groups:  # so that bad options are refused whatever the chat holds
        distill.compress_many([], rate, **options)
    results.sort(key=lambda row: row[:2])
    for i, j, result in results:
        _put(found[i], j, result.text)
    same = sum(distill.counter.count(kept)) if kept else 0
    return ChatResult(
        found,
        results,
        same + sum(r.original_tokens for *_, r in results),
        same + sum(r.tokens for *_, r in results),
        list(dict.fromkeys(note for *_, result in results for note in result.notes)),
    )


def _texts(message: Mapping[str, Any]) -> list[tuple[int, str]]:
    content = message.get("content")
    if isinstance(content, str):
        return [(0, content)]
    return [(j, part["text"]) for j, part in enumerate(content or ()) if part.get("type") == "text"]


def _text_of(message: Mapping[str, Any]) -> str:
    return "\n".join(text for _, text in _texts(message))


def _put(message: dict[str, Any], part: int, text: str) -> None:
    if isinstance(message["content"], str):
        message["content"] = text
    else:
        message["content"][part]["text"] = text
