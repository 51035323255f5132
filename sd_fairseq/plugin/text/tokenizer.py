"""``--bpe sd_tokenizer --sd-tokenizer FILE``: the tokenizer of an imported model, text <-> the numbers of its ids.

A ``.json`` file is read by the package ``tokenizers``, a ``.model`` file by ``sentencepiece``. The file's own padding
and truncation are switched off (a shipped tokenizer may cut at some dozens of tokens), and no end-of-sentence symbol is
added: fairseq adds its own. Special tokens that are typed into a text are read as such.
"""

import os
from dataclasses import dataclass, field
from typing import List, Optional, Protocol

from fairseq.data.encoders import register_bpe
from fairseq.dataclass import FairseqDataclass

from sd_fairseq.plugin.guards.errors import InputError
from sd_fairseq.plugin.text.identity_dictionary import PARTS


@dataclass
class SDTokenizerConfig(FairseqDataclass):
    """The option of ``--bpe sd_tokenizer``."""

    sd_tokenizer: Optional[str] = field(
        default=None,
        metadata={"help": "tokenizer.json or spiece.model of an imported model, for --bpe sd_tokenizer"},
    )
    sd_line_ends: bool = field(
        default=False,
        metadata={
            "help": "with --bpe sd_tokenizer: \\n in a text stands for the end of a line, as chat templates need it"
        },
    )


class Tokenizer(Protocol):
    """What both kinds of file offer."""

    def encode(self, text: str) -> List[int]:
        """Returns the ids of a text."""

    def decode(self, ids: List[int]) -> str:
        """Returns the text of ids, without special tokens."""

    def name(self, index: int) -> str:
        """Returns the token of an id."""


class JsonTokenizer:
    """A file of the package ``tokenizers``.

    Args:
        path: of the file.
    """

    def __init__(self, path: str):
        from tokenizers import Tokenizer as Inner

        try:
            self.inner = Inner.from_file(path)
        except Exception as error:  # the package raises nothing more precise
            raise InputError(f"--sd-tokenizer {path}: not a tokenizer.json ({error})") from error
        self.inner.no_padding()
        self.inner.no_truncation()

    def encode(self, text: str) -> List[int]:
        """See :class:`Tokenizer`."""
        return list(self.inner.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: List[int]) -> str:
        """See :class:`Tokenizer`."""
        return str(self.inner.decode(ids, skip_special_tokens=True))

    def name(self, index: int) -> str:
        """See :class:`Tokenizer`."""
        return str(self.inner.id_to_token(index))


class SentencePieceTokenizer:
    """A file of ``sentencepiece``.

    Args:
        path: of the file.
    """

    def __init__(self, path: str):
        import sentencepiece

        try:
            self.inner = sentencepiece.SentencePieceProcessor(model_file=path)
        except (OSError, RuntimeError) as error:
            raise InputError(f"--sd-tokenizer {path}: not a sentencepiece model ({error})") from error
        self.encode, self.decode = self.inner.encode, self.inner.decode
        self.name = self.inner.id_to_piece


def open_tokenizer(path: Optional[str]) -> Tokenizer:
    """Opens a tokenizer's file.

    Raises:
        InputError: no such file, or one of another kind.
        ModuleNotFoundError: ``tokenizers`` is needed and not installed.
    """
    if not path or not os.path.isfile(path):
        raise InputError(f"--sd-tokenizer {path}: no such file, expected a tokenizer.json or spiece.model")
    if path.endswith(".json"):
        return JsonTokenizer(path)
    if path.endswith(".model"):
        return SentencePieceTokenizer(path)
    raise InputError(f"--sd-tokenizer {path}: expected a file that ends with .json or .model")


@register_bpe("sd_tokenizer", dataclass=SDTokenizerConfig)
class SDTokenizer:
    """What fairseq's commands call between text and the symbols of a dictionary of ids.

    Args:
        cfg: the option.

    Raises:
        InputError: see :func:`open_tokenizer`; a package that is missing, too.
    """

    def __init__(self, cfg: SDTokenizerConfig):
        self.line_ends = cfg.sd_line_ends
        try:
            self.inner = open_tokenizer(cfg.sd_tokenizer)
        except ModuleNotFoundError as error:
            raise InputError(f"--bpe sd_tokenizer needs {error.name}: pip install {error.name}") from error

    def encode(self, x: str) -> str:
        """Text -> symbols, separated by blanks."""
        ids = self.inner.encode(x.replace("\\n", "\n") if self.line_ends else x)
        names = (self.inner.name(index) for index in ids)
        return " ".join(name if name in PARTS else str(index) for index, name in zip(ids, names))

    def decode(self, x: str) -> str:
        """Symbols -> text; special and unknown ones are left out."""
        text = self.inner.decode([int(word) for word in x.split() if word.isdigit()])
        return text.replace("\n", "\\n") if self.line_ends else text
