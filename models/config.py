"""The config of our models: a stock config with two more fields, `policy` and `compression`."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

from distill.patches.policy import as_policy


class DistillConfigMixin:
    """Gives a stock config the fields `policy` and `compression`.

    Attributes:
        model_type: the name of our architecture, such as `"distill_llama"`.
        stock_model_type: the name of the stock one, such as `"llama"`.
        policy: a `Policy` or `None` (exactly the stock model). It can also be set by a policy's name or JSON form.
        compression: which matrices are two factors, see `distill.compression.spec`; `None` if none is.
    """

    model_type: ClassVar[str]
    stock_model_type: ClassVar[str]
    policy: Any = None
    compression: Any = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # the Trainer would take these two fields of the output for predictions
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
        """Reads the config of a checkpoint, one of ours or one of the stock architecture.

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
        # auto_map says in which file the checkpoint's classes are; saving a model writes it again
        values = {name: value for name, value in values.items() if name != "auto_map"}
        return (values | {"model_type": cls.model_type} if found is not None else values), rest

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Does nothing: `save_pretrained` of the model writes what the Auto classes need."""


def _tell_peft(ours: str, stock: str) -> None:
    """Gives our architecture the default target modules that PEFT has for the stock one.

    PEFT looks them up by `model_type` in public tables. It does so right after it has called `to_dict` on a model's
    config, which is why `to_dict` calls this function.
    """
    from peft.utils import constants

    for name, table in vars(constants).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and isinstance(table, dict) and stock in table:
            table.setdefault(ours, table[stock])
