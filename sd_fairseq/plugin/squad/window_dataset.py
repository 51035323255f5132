"""The windows of a split as a fairseq data set."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence

import numpy as np
import torch
from fairseq.data import FairseqDataset, data_utils

from sd_fairseq.plugin.squad.windows import Window


class WindowDataset(FairseqDataset):
    """Windows, batched by length.

    Args:
        windows: of all questions.
        padding: index of the padding symbol.
        shuffle: True = equally long windows in random order.
    """

    def __init__(self, windows: Sequence[Window], padding: int, shuffle: bool):
        self.windows, self.padding, self.shuffle = windows, padding, shuffle
        self.sizes = np.array([window.tokens.numel() for window in windows])

    def __getitem__(self, index: int) -> Dict[str, Any]:
        """Returns a window with its number."""
        return {"id": index, "window": self.windows[index]}

    def __len__(self) -> int:
        """Returns the number of windows."""
        return len(self.windows)

    def collater(self, samples: List[Dict[str, Any]]) -> Dict[str, Any]:
        """Makes a right-padded batch."""
        if not samples:
            return {}
        windows = [sample["window"] for sample in samples]
        return {"id": torch.tensor([sample["id"] for sample in samples]), **collate_windows(windows, self.padding)}

    def num_tokens(self, index: int) -> int:
        """Returns the tokens of a window."""
        return int(self.sizes[index])

    def size(self, index: int) -> int:
        """Returns the tokens of a window."""
        return int(self.sizes[index])

    def ordered_indices(self) -> np.ndarray:
        """Returns the windows from short to long."""
        order = np.random.permutation(len(self)) if self.shuffle else np.arange(len(self))
        return order[np.argsort(self.sizes[order], kind="mergesort")]


def collate_windows(windows: Sequence[Window], padding: int) -> Dict[str, Any]:
    """Makes the model's input of some windows.

    Choice: the decoder gets the very tokens of the encoder, neither shifted nor rolled: the state that scores a token
    has then read this token, also where the encoder has dropped it. With a shifted decoder a dropped token would be
    scored by a state that never saw it, and its answer lost in silence.

    Returns:
        ``net_input``; ``target`` LongTensor [B, 2]; ``candidates`` BoolTensor [B, T], True = a span may begin or end
        here: at any token of the context, and at ``<s>`` for no answer; counts of windows and tokens.
    """
    tokens = data_utils.collate_tokens([window.tokens for window in windows], padding)  # [B, T]
    candidates = torch.zeros_like(tokens, dtype=torch.bool)
    candidates[:, 0] = True
    for row, window in enumerate(windows):
        candidates[row, window.first : window.first + len(window.spans)] = True
    lengths = torch.tensor([window.tokens.numel() for window in windows])
    return {
        "net_input": {"src_tokens": tokens, "src_lengths": lengths, "prev_output_tokens": tokens},
        "target": torch.tensor([window.target for window in windows]),
        "candidates": candidates,
        "nsentences": len(windows),
        "ntokens": int(lengths.sum()),
    }
