"""A causal language model as the codec sees it.

Hashes of what it is, bytes of each token, and the machine it runs on.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "tokenizer_config.json")


@dataclass
class CodecModel:
    """What codes and decodes: made by `load_model`.

    Attributes:
        model: any causal LM of Transformers, in evaluation mode.
        tokenizer: its tokenizer.
        name: what people call it; a file holds it to say what is needed.
        weights, words: SHA-256 of the weights with their config, and of the tokenizer.
    """

    model: Any
    tokenizer: Any
    name: str
    weights: str
    words: str

    @cached_property
    def start(self) -> int:
        """The token that stands before the first one."""
        known = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.model.config.bos_token_id)
        return next((int(token) for token in known if token is not None), 0)

    @cached_property
    def vocabulary(self) -> int:
        """Symbols that the coder tells apart: all scores that the model gives."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    @cached_property
    def token_bytes(self) -> list[bytes] | None:
        """The bytes of each token of a byte-level tokenizer; None where the tokenizer is of another kind."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None or "ByteLevel" not in str(type(backend.decoder)) + repr(backend.decoder):
            return None
        back = {character: byte for byte, character in _alphabet().items()}
        found = [b""] * self.vocabulary
        added = {index: token.content for index, token in self.tokenizer.added_tokens_decoder.items()}
        for text, index in self.tokenizer.get_vocab().items():
            if index >= len(found):
                continue
            if index in added:
                found[index] = added[index].encode()
            elif all(character in back for character in text):
                found[index] = bytes(back[character] for character in text)
        return found

    def encode(self, data: bytes) -> list[int] | None:
        """Tokens whose bytes are `data` again, proven by decoding them; None where there are none."""
        ids: list[int] = []
        for piece, valid in _pieces(data):
            if valid:
                ids += self.tokenizer(piece.decode(), add_special_tokens=False, verbose=False)["input_ids"]
            elif (single := self._single_bytes) is None or any(byte not in single for byte in piece):
                return None
            else:
                ids += [single[byte] for byte in piece]
        return ids if self.decode(ids) == data else None

    def decode(self, ids: list[int]) -> bytes:
        """The bytes of tokens, as they are: nothing is cleaned up, and nothing special left out."""
        if self.token_bytes is not None:
            return b"".join(self.token_bytes[index] for index in ids)
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text).encode("utf-8", "surrogatepass")

    def piece(self, index: int) -> bytes:
        """The bytes of one token, to be shown."""
        return self.token_bytes[index] if self.token_bytes is not None else self.decode([index])

    @cached_property
    def _single_bytes(self) -> dict[int, int] | None:
        if self.token_bytes is None:
            return None
        return {token[0]: index for index, token in reversed(list(enumerate(self.token_bytes))) if len(token) == 1}

    def fingerprint(self, threads: int) -> dict[str, str]:
        """Everything besides the model that may change the last bits of a score."""
        parameter = next(self.model.parameters())
        device = parameter.device
        if device.type == "cuda":
            chip = torch.cuda.get_device_name(device)
        else:
            chip = f"{_processor()} {torch.backends.cpu.get_cpu_capability()}"
        return {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "device": f"{device.type}: {chip}",
            "dtype": str(parameter.dtype).removeprefix("torch."),
            "attention": str(self.model.config._attn_implementation),
            "threads": str(threads),
        }


def load_model(
    path: str | os.PathLike[str],
    *,
    portable: bool = False,
    device: str = "cpu",
    gguf_file: str | None = None,
    name: str | None = None,
) -> CodecModel:
    """A checkpoint for coding.

    Args:
        path: a folder of Transformers, or a GGUF file.
        portable: float64 instead of float32.
        device: where it runs.
        gguf_file: name of a GGUF file in the folder.
        name: what a file shall say it was coded with; by default the folder's name.

    Raises:
        ValueError: there is no such folder, or no weights in it.
    """
    folder = Path(path)
    if folder.suffix == ".gguf" and folder.is_file():
        folder, gguf_file = folder.parent, folder.name
    if not folder.is_dir():
        raise ValueError(f"model: got {str(path)!r}; allowed are folders of a checkpoint and GGUF files")
    weights = [folder / gguf_file] if gguf_file else _weights_in(folder)
    extra: dict[str, Any] = {} if gguf_file is None else {"gguf_file": gguf_file}
    dtype = torch.float64 if portable else torch.float32
    words = [] if gguf_file else [folder / file for file in _TOKENIZER if (folder / file).is_file()]
    config = [] if gguf_file else [folder / "config.json"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **extra)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **extra).to(device).eval()
    return CodecModel(model, tokenizer, name or folder.name, _sha256([*config, *weights]), _sha256(words or weights))


def _weights_in(folder: Path) -> list[Path]:
    """The files of the weights, of the first kind that is there."""
    for pattern in _WEIGHTS:
        if found := sorted(folder.glob(pattern)):
            return found
    raise ValueError(f"model: got {str(folder)!r}, which holds no weights; allowed are {', '.join(_WEIGHTS)}")


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with open(file, "rb") as handle:
            while chunk := handle.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _alphabet() -> dict[int, str]:
    """The letter that byte-level tokenizers write for each byte: printable ones stand for themselves."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _pieces(data: bytes) -> Iterator[tuple[bytes, bool]]:
    """`data` cut into runs of valid UTF-8 (True) and what is none (False)."""
    while data:
        try:
            data.decode()
        except UnicodeDecodeError as error:
            if error.start:
                yield data[: error.start], True
            yield data[error.start : error.end], False
            data = data[error.end :]
        else:
            yield data, True
            return


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Runs torch with so many threads, and gives back the number there was."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
