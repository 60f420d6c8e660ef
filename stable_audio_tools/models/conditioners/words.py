"""Text as words that the model learns itself: no tokenizer, no download, and no list of known words.

A word is the mean of learned vectors, one for the word and one for each run of three letters in it. All are found by
hashing into one table, so that a word that was never seen still resembles those it shares letters with.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any
from zlib import crc32

import torch
from pydantic import Field
from torch import Tensor, nn

from stable_audio_tools.core.config import Runtime, register
from stable_audio_tools.models.conditioners.base import (
    Condition,
    Conditioner,
    OutputDim,
    ProjectOut,
    reads,
    require_texts,
)

_TOKENS = re.compile(r"\w+|[^\w\s]")
_LETTERS = 3  # in a run
_INITIAL_STD = 0.5


@register("conditioner", "words", facts=reads("text"))
class WordsConditioner(Conditioner):
    """Text as words, with vectors that are trained with the model."""

    def __init__(
        self,
        output_dim: OutputDim = None,
        max_length: Annotated[int, Field(ge=1, description="most words of a text; the rest is cut off")] = 64,
        table_size: Annotated[int, Field(ge=2, description="learned vectors of words and runs of letters")] = 8192,
        project_out: ProjectOut = False,
        *,
        cond_dim: Runtime[int | None] = None,
    ) -> None:
        super().__init__(None, output_dim, project_out, cond_dim)
        self.max_length, self.table_size = max_length, table_size
        self.pieces = nn.EmbeddingBag(table_size, self.dim, mode="mean")
        self.start = nn.Parameter(torch.zeros(self.dim))
        self.positions = nn.Embedding(1 + max_length, self.dim)
        nn.init.normal_(self.pieces.weight, std=_INITIAL_STD)
        nn.init.normal_(self.positions.weight, std=_INITIAL_STD / 10)

    def encode(self, values: Sequence[Any]) -> Condition:
        """Return one token for the start of each text and one per word, (b, 1 + longest, d), and which are real."""
        texts = [split_words(text)[: self.max_length] for text in require_texts(values)]
        lengths = torch.tensor([1 + len(words) for words in texts], device=self.device)
        tokens = self.start.expand(len(texts), int(lengths.max()), -1).clone()
        real = torch.arange(tokens.shape[1], device=self.device) < lengths[:, None]
        vectors = self._look_up([word for words in texts for word in words])
        of_words = real.clone()
        of_words[:, 0] = False
        tokens[of_words] = vectors.to(tokens.dtype)
        tokens = tokens + self.positions(torch.arange(tokens.shape[1], device=self.device))
        return Condition(self.project(tokens) * real[..., None], real)

    def _look_up(self, words: Sequence[str]) -> Tensor:
        """Return the vector of each word, (n, d)."""
        pieces = [hash_pieces(word, self.table_size) for word in words]
        starts = torch.tensor([0, *map(len, pieces)]).cumsum(0)[:-1]
        rows = torch.tensor([row for piece in pieces for row in piece], dtype=torch.long)
        vectors: Tensor = self.pieces(rows.to(self.device), starts.to(self.device))
        return vectors


def split_words(text: str) -> list[str]:
    """Split a text into words and marks, in lower case and with compatible characters made equal."""
    return _TOKENS.findall(unicodedata.normalize("NFKC", text).lower())


@lru_cache(maxsize=1 << 16)
def hash_pieces(word: str, table_size: int) -> tuple[int, ...]:
    """Return the rows of a word and of its runs of letters; the ends of the word count as letters."""
    framed = f"<{word}>"
    runs = [framed[start : start + _LETTERS] for start in range(max(1, len(framed) - _LETTERS + 1))]
    return tuple(crc32(piece.encode()) % table_size for piece in (word, *runs))
