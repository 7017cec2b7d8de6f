"""What the proxy shortens, and how: by route in a file, and by headers of a request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from distill.pruning.chat import check_roles
from distill.pruning.checks import bad, flag, number, unknown

ROUTES = ("/v1/chat/completions", "/v1/completions")


@dataclass(frozen=True)
class Route:
    """How the requests of one route are shortened.

    Args:
        rate: share of the tokens to keep of each text; None shortens nothing that `roles` does not name.
        roles: shares by role, see `compress_messages`. Without any, results of tools have `rate` and all other
            messages stay as they are: what one turn of a chat forwards is then what the next one forwards too.
        query_aware: whether the last turn of the user decides what stays of a new message.

    Raises:
        ValueError: a value out of range.
    """

    rate: float | None = None
    roles: dict[str, float] = field(default_factory=dict)
    query_aware: bool = False

    def __post_init__(self) -> None:
        if self.rate is not None:
            number("rate", self.rate, 0, 1, above=True, meaning="the share to keep")
        object.__setattr__(self, "roles", check_roles(self.roles))
        flag("query_aware", self.query_aware)

    @property
    def active(self) -> bool:
        """Whether anything is shortened."""
        return (self.rate is not None and self.rate < 1) or any(share < 1 for share in self.roles.values())

    def memory_key(self) -> dict[str, Any]:
        """What decides the form of a message, but for the message and those before it."""
        return asdict(self)

    def chat_options(self) -> dict[str, Any]:
        """Options of `compress_messages`."""
        shares = self.roles or ({"tool": self.rate, "function": self.rate} if self.rate is not None else {})
        quiet = {role: 1.0 for role in ("user", "assistant", "system", "developer") if role not in shares}
        return {"rate": self.rate, "roles": {**quiet, **shares}, "query_aware": self.query_aware}

    def text_options(self) -> dict[str, Any]:
        """Options of `Distill.compress_many`."""
        return {"rate": self.rate}


OFF = Route()


def read_routes(path: str | Path | None, rate: float | None = None) -> dict[str, Route]:
    """The routes of a file, such as `{"/v1/chat/completions": {"rate": 0.5, "roles": {"tool": 0.3}}}`.

    Args:
        path: a JSON file; None for no file.
        rate: the rate of the routes that the file does not name; None leaves them alone.

    Raises:
        ValueError: a file that cannot be read, an unknown route or setting, or a value out of range.
    """
    found = {name: Route(rate) for name in ROUTES}
    if path is None:
        return found
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise bad("--routes", str(path), f"JSON files that can be read ({error})") from None
    if not isinstance(given, dict):
        raise bad("--routes", given, "objects of settings by route")
    for name, options in given.items():
        if name not in ROUTES or not isinstance(options, dict):
            raise bad("--routes", {name: options}, f"settings for {', '.join(ROUTES)}")
        known = [f.name for f in fields(Route)]
        unknown([option for option in options if option not in known], known)
        found[name] = Route(**options)
    return found


def from_headers(route: Route, headers: Mapping[str, str]) -> Route | str:
    """The route as the headers of a request change it, or what is wrong with them.

    `X-Distill: off` leaves a request alone; `X-Distill-Rate: 0.5`, `X-Distill-Roles: tool=0.3,assistant=0.5` and
    `X-Distill-Query-Aware: true` set what they name.
    """
    if headers.get("x-distill", "").strip().lower() in ("off", "0", "false"):
        return OFF
    changes: dict[str, Any] = {}
    try:
        if "x-distill-rate" in headers:
            changes["rate"] = float(headers["x-distill-rate"])
        if "x-distill-roles" in headers:
            pairs = [part.partition("=") for part in headers["x-distill-roles"].split(",") if part.strip()]
            changes["roles"] = {role.strip(): float(share) for role, _, share in pairs}
        if "x-distill-query-aware" in headers:
            changes["query_aware"] = headers["x-distill-query-aware"].strip().lower() in ("1", "true", "yes")
        return replace(route, **changes) if changes else route
    except ValueError:
        return "a header X-Distill-... that cannot be read"
