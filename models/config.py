"""A stock config with one more field, `policy`."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

from distill.patches.policy import as_policy


class DistillConfigMixin:
    """A stock config with one more field, `policy`: a `Policy`, its name, its JSON form, or `None` (exactly stock)."""

    model_type: ClassVar[str]
    stock_model_type: ClassVar[str]
    policy: Any = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # the Trainer takes all other outputs for predictions
        stock = getattr(cls, "keys_to_ignore_at_inference", [])
        cls.keys_to_ignore_at_inference = list(dict.fromkeys([*stock, "positions", "selections"]))  # type: ignore[attr-defined]

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, as_policy(value) if name == "policy" else value)

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()  # type: ignore[misc]
        values["policy"] = None if self.policy is None else self.policy.to_dict()
        if "peft" in sys.modules:
            _tell_peft(self.model_type, self.stock_model_type)
        return values

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads a checkpoint's config; that of the stock architecture is as good as our own.

        Raises:
            ValueError: a checkpoint of another architecture.
        """
        values, rest = super().get_config_dict(*args, **kwargs)  # type: ignore[misc]
        found = values.get("model_type")
        if found not in (None, cls.stock_model_type, cls.model_type):
            raise ValueError(
                f"model_type: got {found!r}; allowed for {cls.__name__} are {cls.stock_model_type!r} and "
                f"{cls.model_type!r}; distill.load picks the class by the checkpoint"
            )
        # auto_map says where a saved checkpoint's classes are; it is written anew whenever a model is saved
        values = {name: value for name, value in values.items() if name != "auto_map"}
        return (values | {"model_type": cls.model_type} if found is not None else values), rest

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Does nothing: `save_pretrained` of the model writes what the Auto classes need."""


def _tell_peft(ours: str, stock: str) -> None:
    """Gives our architecture the default target modules that PEFT has for the stock one.

    PEFT looks them up by `model_type`, in public tables, right after it has asked a model's config for its
    dictionary; so that is when they are filled in.
    """
    from peft.utils import constants

    for name, table in vars(constants).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and isinstance(table, dict) and stock in table:
            table.setdefault(ours, table[stock])
