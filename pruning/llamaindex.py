"""A node post-processor for LlamaIndex (the extra `llamaindex`)."""

from __future__ import annotations

from typing import Any, Literal

from llama_index.core.bridge.pydantic import ConfigDict, Field
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode

from distill.pruning.engine import Distill


class DistillPostprocessor(BaseNodePostprocessor):
    """Shortens retrieved nodes before they reach the model; the query decides which sentences stay.

    Use it wherever LlamaIndex takes node post-processors, such as `index.as_query_engine(node_postprocessors=[...])`.

    Args:
        distill: shortens; by default the small model that ships.
        rate: share of the tokens to keep.
        target_tokens: the most tokens to keep, in place of `rate`.
        scope: whether `"each"` node has the budget, or `"all"` share it.
        options: further options of `Distill.compress_many`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    distill: Distill = Field(default_factory=Distill, exclude=True)
    rate: float | None = None
    target_tokens: int | None = None
    scope: Literal["each", "all"] = "each"
    options: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex stores it."""
        return "DistillPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        """New nodes with shorter texts, in their order, with scores, identifiers and metadata as they were.

        A node that has lost all its words is left out.
        """
        query = query_bundle.query_str if query_bundle is not None else ""
        asked = {"question": query} if query.strip() else {}
        texts = [node.node.get_content(metadata_mode=MetadataMode.NONE) for node in nodes]
        results = self.distill.compress_many(
            texts, self.rate, target_tokens=self.target_tokens, scope=self.scope, **{**asked, **self.options}
        )
        found = []
        for node, text, result in zip(nodes, texts, results, strict=True):
            if result.text.strip() or not text.strip():
                metadata = {"distill_tokens": result.tokens, "distill_original_tokens": result.original_tokens}
                made = TextNode(
                    text=result.text,
                    id_=node.node.node_id,
                    metadata={**node.node.metadata, **metadata},
                    excluded_llm_metadata_keys=[*node.node.excluded_llm_metadata_keys, *metadata],
                    excluded_embed_metadata_keys=[*node.node.excluded_embed_metadata_keys, *metadata],
                    relationships=node.node.relationships,
                )
                found.append(NodeWithScore(node=made, score=node.score))
        return found
