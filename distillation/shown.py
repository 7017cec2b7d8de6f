"""What a teacher says, on disk: its most likely tokens after each token of the lessons, computed once.

A teacher that is much larger than its student is then needed only before the lessons, and not at each repetition of a
block. With `best=50` and a vocabulary of 49,152, the file has 300 bytes a token, where whole logits would have 98,304.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from distill.training import write_whole
from distill.training.losses import best_of, scaled_logits

#: blocks between two notes of how far the file is
EVERY = 16


class Shown:
    """The file, and the rows of it that a step asks for.

    Args:
        folder: where `logs.npy` (float16, `(blocks, tokens, best)`) and `indices.npy` (int32) lie.
        blocks: the numbers of the blocks that they hold, in order.
    """

    def __init__(self, folder: Path, blocks: Sequence[int]) -> None:
        self.logs = np.load(folder / "logs.npy", mmap_mode="r")
        self.indices = np.load(folder / "indices.npy", mmap_mode="r")
        self.places = {number: place for place, number in enumerate(blocks)}

    def of(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities and token ids `(blocks * tokens, best)` of the teacher's best after each token.

        Args:
            numbers: `(blocks,)`, of blocks.
        """
        rows = [self.places[number] for number in numbers.tolist()]
        logs, indices = (torch.from_numpy(np.stack([held[row] for row in rows])) for held in (self.logs, self.indices))
        return logs.float().flatten(0, 1), indices.long().flatten(0, 1)


@torch.no_grad()
def show(teacher: Any, blocks: Tensor, numbers: Sequence[int], best: int, folder: Path) -> Shown:
    """Writes what a teacher says of some blocks; goes on where an earlier call was killed.

    Args:
        teacher: a causal LM.
        blocks: `(blocks, length)` token ids.
        numbers: which of them, rising.
        best: tokens that are kept.
        folder: for the files; made if absent. It belongs to one teacher and one set of blocks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state, done = folder / "done.json", 0
    shape = (len(numbers), blocks.shape[1] - 1, min(best, teacher.config.vocab_size))
    if state.exists():
        done, mode = int(json.loads(state.read_text())), "r+"
    else:
        mode = "w+"
    held = [
        np.lib.format.open_memmap(folder / f"{name}.npy", mode=mode, dtype=dtype, shape=shape)
        for name, dtype in (("logs", np.float16), ("indices", np.int32))
    ]
    for place in tqdm(range(done, len(numbers)), desc="teacher", leave=False, disable=done == len(numbers)):
        ids = blocks[numbers[place]][None].to(teacher.device)
        hidden = teacher.get_decoder()(ids, use_cache=False).last_hidden_state[0, :-1]
        for array, found in zip(held, best_of(scaled_logits(teacher, hidden), best), strict=True):
            array[place] = found.cpu().numpy()
        if (place + 1) % EVERY == 0 or place + 1 == len(numbers):
            for array in held:
                array.flush()
            text = json.dumps(place + 1)
            write_whole(state, lambda new, text=text: new.write_text(text))  # type: ignore[misc]
    return Shown(folder, numbers)
