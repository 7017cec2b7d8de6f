"""The default rate and the names of the scorers, in a file that does not import PyTorch, so that `--help` is quick."""

DEFAULT_RATE = 0.5

# scorer: the kind of model that it needs; None if it needs none of `model_name`
SCORERS: dict[str, str | None] = {
    "self-information": "causal-lm",
    "question-likelihood": "causal-lm",
    "attention": "causal-lm",
    "gradient": "causal-lm",
    "classifier": "token-classification",
    "cross-encoder": "sequence-classification",
    "hybrid": None,
    "lexical": None,
    "baseline": None,
    "random": None,
}
