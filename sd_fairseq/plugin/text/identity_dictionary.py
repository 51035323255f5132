"""A dictionary whose indices are an imported model's own token ids.

Its symbols are the numbers "0", "1", ... in order, but for the ids that play a part: these stand under fairseq's names
(``<pad>``, ``</s>``, ``<unk>``) at their own line of ``dict.txt``. A dictionary of fairseq's never lists those.
"""

from __future__ import annotations

import os
from typing import Dict, Sequence

from fairseq.data import Dictionary

from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.user_files import numbered_lines, open_input

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
PARTS = (PAD, EOS, UNK)


class IdentityDictionary(Dictionary):
    """As fairseq's, without a beginning-of-sentence symbol: that is the end-of-sentence symbol.

    Args:
        symbols: in the order of the ids; :data:`PAD` and :data:`EOS` among them, :data:`UNK` where the model has one.
    """

    def __init__(self, symbols: Sequence[str]):
        super().__init__(bos=EOS, pad=PAD, eos=EOS, unk=UNK if UNK in symbols else PAD, add_special_symbols=False)
        for symbol in symbols:
            self.add_symbol(symbol)
        self.nspecial = 0
        self.pad_index, self.eos_index = self.indices[PAD], self.indices[EOS]
        self.bos_index, self.unk_index = self.eos_index, self.indices[self.unk_word]

    def index(self, sym: str) -> int:
        """As fairseq's; the number of an id that plays a part is understood, too."""
        number = int(sym) if sym.isdigit() else len(self)
        return number if number < len(self) else super().index(sym)

    @classmethod
    def of_size(cls, size: int, parts: Dict[str, int]) -> "IdentityDictionary":
        """Makes the dictionary of ``size`` ids; ``parts``: name -> id."""
        names = {index: name for name, index in parts.items()}
        return cls([names.get(index, str(index)) for index in range(size)])

    @classmethod
    def load(cls, f: str, add_special_symbols: bool = True) -> "IdentityDictionary":
        """Reads a ``dict.txt``.

        Raises:
            InputError: a line that is no symbol of this kind, naming it.
        """
        symbols = []
        for number, line in numbered_lines(f):
            symbol = line.split(" ")[0].strip()
            if not symbol:
                continue
            if symbol not in PARTS and symbol != str(len(symbols)):
                raise InputError(f"{f}: line {number} is {symbol!r}, expected {len(symbols)} or one of {PARTS}")
            symbols.append(symbol)
        if PAD not in symbols or EOS not in symbols:
            raise InputError(f"{f}: a dictionary of token ids has lines {PAD} and {EOS}")
        return cls(symbols)


def is_identity(path: str) -> bool:
    """Tells whether a ``dict.txt`` lists fairseq's own symbols, which only this kind does."""
    if not os.path.isfile(path):
        return False
    with open_input(path) as lines:
        return any(line.startswith((PAD.encode() + b" ", EOS.encode() + b" ")) for line in lines)
