"""A tokenizer for the tiny models: token 7 is the word `w7`."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ..tiny import VOCABULARY

#: a user's message opens with w1 w2 and ends with w3; the answer opens with w4
TEMPLATE = (
    "{% for message in messages %}w1 w2 {{ message['content'] | trim }} w3{% endfor %}"
    "{% if add_generation_prompt %} w4{% endif %}"
)


def tokenizer_of(chat=False):
    """The tokenizer, with a chat template or without."""
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    tokenizer.chat_template = TEMPLATE if chat else None
    return tokenizer


def text_of(ids):
    """The text whose tokens are these."""
    return " ".join(f"w{i}" for i in ids)
