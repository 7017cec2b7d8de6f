"""Names that a help text needs before PyTorch is imported."""

DEFAULT_RATE = 0.5

# scorer: the head its model must have; None needs no model
SCORERS: dict[str, str | None] = {
    "self-information": "causal-lm",
    "question-likelihood": "causal-lm",
    "attention": "causal-lm",
    "gradient": "causal-lm",
    "classifier": "token-classification",
    "cross-encoder": "sequence-classification",
    "lexical": None,
    "baseline": None,
    "random": None,
}
