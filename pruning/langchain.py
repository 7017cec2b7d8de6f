"""A document compressor for LangChain (the extra `langchain`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from langchain_core.callbacks import Callbacks
from langchain_core.documents import BaseDocumentCompressor, Document
from pydantic import ConfigDict, Field

from distill.pruning.engine import Distill


class DistillCompressor(BaseDocumentCompressor):
    """Shortens retrieved documents before they reach the model; the query decides which sentences stay.

    Use it wherever LangChain takes a document compressor, such as
    `ContextualCompressionRetriever(base_compressor=...)`.

    Args:
        distill: shortens; by default the small model that ships.
        rate: share of the tokens to keep.
        target_tokens: the most tokens to keep, in place of `rate`.
        scope: whether `"each"` document has the budget, or `"all"` share it.
        options: further options of `Distill.compress_many`.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    distill: Distill = Field(default_factory=Distill)
    rate: float | None = None
    target_tokens: int | None = None
    scope: Literal["each", "all"] = "each"
    options: dict[str, Any] = Field(default_factory=dict)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """The documents with shorter texts, in their order; what has lost all its words is left out.

        Metadata stay as they are, with `distill_tokens` and `distill_original_tokens` beside them.

        Args:
            documents: what was retrieved.
            query: what was asked.
            callbacks: are not called.

        Raises:
            ValueError: an option that is not allowed, by name.
        """
        asked = {"question": query} if query.strip() else {}
        results = self.distill.compress_many(
            [d.page_content for d in documents],
            self.rate,
            target_tokens=self.target_tokens,
            scope=self.scope,
            **{**asked, **self.options},
        )
        return [
            document.model_copy(
                update={
                    "page_content": result.text,
                    "metadata": {
                        **document.metadata,
                        "distill_tokens": result.tokens,
                        "distill_original_tokens": result.original_tokens,
                    },
                }
            )
            for document, result in zip(documents, results, strict=True)
            if result.text.strip() or not document.page_content.strip()
        ]
