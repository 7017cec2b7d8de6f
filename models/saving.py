"""The files by which a saved checkpoint can be used where distill has not been imported.

These are a model card, and a module that gives the Auto classes ours.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from distill.patches.policy import Policy

MODULE = "modeling_distill"

_SOURCE = '''"""Loads the classes of this checkpoint from the package distill-llm, for `trust_remote_code=True`."""

try:
{imports}
except ImportError as error:
    raise ImportError(f"{{error}}; this checkpoint needs distill: pip install distill-llm, import distill") from error

__all__ = [{names}]
'''

_CARD = """---
library_name: transformers
tags:
- distill
---

# {title}

A checkpoint of type `{model_type}`: the weights are those of a stock `{stock}` model{weights}, and `config.json` says
which tokens of a long prompt the model keeps. It needs the package `distill-llm`.

```python
# pip install distill-llm
import distill  # registers the classes with Transformers{more}
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{path}")
with model.using(None):
    ...  # without the policy: exactly the {same} model
```

Where distill is installed, `from_pretrained(path, trust_remote_code=True)` works without the import. To serve it with
vLLM: `pip install "distill-llm[vllm]"`, then `vllm serve {path}`; without that, vLLM does not know the model.

The policy:

```json
{policy}
```
"""


def auto_map(classes: dict[str, type]) -> dict[str, str]:
    """The entry `auto_map` of a saved config: by Auto class, the module and name of the class it should load."""
    return {auto: f"{MODULE}.{cls.__name__}" for auto, cls in classes.items()}


def _modules(policy: Policy | None) -> list[str]:
    """The modules that must be imported before a policy can be read: those of methods that are not distill's own."""
    if policy is None:
        return []
    found = [type(policy).__module__]
    for field in dataclasses.fields(policy):
        value = getattr(policy, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            found += _modules(item) if isinstance(item, Policy) else []
    return [module for module in dict.fromkeys(found) if not module.startswith("distill.")]


def write_card_and_module(folder: Path, model: Any, classes: dict[str, type]) -> None:
    """Writes the module for the Auto classes, and a model card unless the folder has one.

    Args:
        folder: where the model is being saved.
        model: the model.
        classes: by the name of an Auto class, the class that it should load.
    """
    config = model.config
    folder.mkdir(parents=True, exist_ok=True)
    modules = _modules(config.policy)
    lines = [f"    import {module}  # noqa: F401" for module in modules]
    lines += [f"    from {cls.__module__} import {cls.__name__}" for cls in classes.values()]
    names = ", ".join(f'"{cls.__name__}"' for cls in classes.values())
    (folder / f"{MODULE}.py").write_text(_SOURCE.format(imports="\n".join(lines), names=names))
    card = folder / "README.md"
    if not card.exists():
        policy = None if config.policy is None else config.policy.to_dict()
        card.write_text(
            _CARD.format(
                title=folder.name,
                path=folder.name,
                model_type=config.model_type,
                stock=config.stock_model_type,
                weights=""
                if config.compression is None
                else ", compressed: some matrices are products of two factors",
                same="stock" if config.compression is None else "compressed",
                policy=json.dumps(policy, indent=2),
                more="".join(f"\nimport {module}  # registers the method" for module in modules),
            )
        )
