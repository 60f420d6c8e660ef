"""Text as tokens: from an encoder of the T5 family, phonemes, a table of tokens, or learned words."""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any
from zlib import crc32

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from stable_audio_tools.core.config import Runtime, register
from stable_audio_tools.core.devices import indexed, pick_dtype
from stable_audio_tools.core.errors import ConfigError, UserError
from stable_audio_tools.models.conditioners.base import (
    Condition,
    Conditioner,
    OutputDim,
    PaddingMode,
    ProjectOut,
    Values,
    reads,
    require_texts,
)
from stable_audio_tools.models.conditioners.frozen import FrozenEncoder, RecentResults
from stable_audio_tools.models.conditioners.hub import (
    TOKENIZER_FILES,
    WEIGHT_FILES,
    in_dtype,
    load_pretrained,
    only_shapes_wanted,
    read_pretrained_config,
)
from stable_audio_tools.models.transformer import AbsolutePositionalEmbedding

_MaxLength = Annotated[int, Field(ge=1, description="longest text, in tokens; the rest is cut off")]

# Widths of encoders, so that a model can be built without reading their configs.
_T5_WIDTHS = {"small": 512, "base": 768, "large": 1024, "3b": 1024, "11b": 1024}
_XL_WIDTHS = {"small": 512, "base": 768, "large": 1024, "xl": 2048, "xxl": 4096}
_BYT5_WIDTHS = {"small": 1472, "base": 1536, "large": 1536, "xl": 2560, "xxl": 4672}
T5_WIDTHS: dict[str, int] = {
    **{f"{owner}t5-{size}": width for owner in ("", "google-t5/") for size, width in _T5_WIDTHS.items()},
    **{
        f"google/{family}-{size}": width
        for family in ("flan-t5", "t5-v1_1", "mt5", "umt5")
        for size, width in _XL_WIDTHS.items()
    },
    **{f"google/byt5-{size}": width for size, width in _BYT5_WIDTHS.items()},
}


def _check_model_name(config: SimpleNamespace) -> Iterator[tuple[str, str]]:
    name = config.t5_model_name
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if is_path and not Path(name).expanduser().is_dir():
        yield "t5_model_name", f"no folder {name!r}; give one with config.json, weights and tokenizer, or a hub name"


def encoder_width(name: str) -> int:
    """Return the `d_model` of an encoder, from a table or from its config."""
    if name in T5_WIDTHS and not Path(name).is_dir():
        return T5_WIDTHS[name]
    config = read_pretrained_config(name, "t5_model_name")
    width = config.get("d_model")
    if not isinstance(width, int):
        raise ConfigError(
            f"t5_model_name: {name!r} is a {config.get('model_type')!r} model, which is not of the T5 family"
        )
    return width


@register("conditioner", "t5", facts=reads("text"), check=_check_model_name)
class T5Conditioner(Conditioner):
    """Text through an encoder of the T5 family, by hub name or folder.

    A frozen encoder is not in the model's state dict. It is loaded on first use, in float16 on a GPU and float32 on a
    CPU, once per process and device.
    """

    def __init__(
        self,
        output_dim: OutputDim = None,
        t5_model_name: Annotated[
            str, Field(min_length=1, description="hub name or folder of a T5, mT5, umT5, ByT5 or Flan-T5 model")
        ] = "t5-base",
        max_length: _MaxLength = 128,
        enable_grad: Annotated[bool, Field(description="train the encoder, and keep it in the state dict")] = False,
        project_out: ProjectOut = False,
        padding_mode: PaddingMode = "zero",
        *,
        cond_dim: Runtime[int | None] = None,
    ) -> None:
        super().__init__(encoder_width(t5_model_name), output_dim, project_out, cond_dim, padding_mode)
        self.t5_model_name = t5_model_name
        self.max_length = max_length
        self.enable_grad = enable_grad
        self._frozen = FrozenEncoder()
        self._recent: RecentResults[tuple[Tensor, Tensor]] = RecentResults()
        if enable_grad:
            self._modules["model"] = self._trained_encoder()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Conditioner":
        super()._apply(fn, recurse)
        self._frozen.follow(fn)
        return self

    def _trained_encoder(self) -> nn.Module:
        from transformers import AutoConfig, AutoModelForTextEncoding

        if only_shapes_wanted():
            config = load_pretrained(AutoConfig, self.t5_model_name, ("config.json",), "t5_model_name")
            empty: nn.Module = AutoModelForTextEncoding.from_config(config)
            return empty
        return self._load(torch.float32).requires_grad_(True)

    def _load(self, dtype: torch.dtype) -> nn.Module:
        from transformers import AutoModelForTextEncoding

        encoder: nn.Module = load_pretrained(
            AutoModelForTextEncoding, self.t5_model_name, WEIGHT_FILES, "t5_model_name", **in_dtype(dtype)
        )
        return encoder.eval()

    @cached_property
    def tokenizer(self) -> Any:
        """Return the tokenizer of the encoder."""
        return load_tokenizer(self.t5_model_name, "t5_model_name")

    @property
    def model(self) -> nn.Module:
        """Return the encoder; the published name of `encoder()`."""
        return self.encoder()

    def encoder(self) -> nn.Module:
        """Return the encoder on `self.device`; load it on first use."""
        if self.enable_grad:
            return self._modules["model"].eval()  # type: ignore[union-attr]
        dtype = pick_dtype(self.device)
        return self._frozen.on(("t5", self.t5_model_name), self.device, dtype, partial(self._load, dtype))

    def encode(self, values: Values) -> Condition:
        texts = require_texts(values)
        distinct = list(dict.fromkeys(texts))
        if self.enable_grad:
            hidden, mask = self._hidden_states(distinct)
        else:
            key = (indexed(self.device), self.max_length, self.padding_mode == "none", *distinct)
            hidden, mask = self._recent.get(key, partial(self._hidden_states, distinct))
        missing = self.max_length - mask.shape[1]
        projected, mask = F.pad(self.project(hidden), (0, 0, 0, missing)), F.pad(mask, (0, missing))
        rows = torch.tensor([distinct.index(text) for text in texts], device=self.device)
        return Condition(self.fill_padding(projected, mask)[rows], mask[rows])

    def _hidden_states(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Last hidden states (b, s, d) of the encoder, and which are of text, for as many tokens as the longest has.

        Padding changes nothing for the tokens before it. Only where it is kept as it is, all have max_length tokens.
        """
        encoder = self.encoder()
        padding = "max_length" if self.padding_mode == "none" else "longest"
        tokens = self.tokenizer(
            texts, truncation=True, max_length=self.max_length, padding=padding, return_tensors="pt"
        )
        ids, mask = tokens["input_ids"].to(self.device), tokens["attention_mask"].to(self.device).bool()
        grad = torch.is_grad_enabled() and self.enable_grad
        with torch.set_grad_enabled(grad), torch.autocast(self.device.type, enabled=False):
            return encoder(input_ids=ids, attention_mask=mask)["last_hidden_state"], mask


def load_tokenizer(name: str, key: str) -> Any:
    """Load a tokenizer that can pad, by hub name or folder."""
    from transformers import AutoTokenizer

    tokenizer = load_pretrained(AutoTokenizer, name, TOKENIZER_FILES, key)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


# ------------------------------------------------------------------ phonemes

_VOWELS = ["AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"]
_CONSONANTS = [*"BDFGKLMNPRSTVWYZ", "CH", "DH", "HH", "JH", "NG", "SH", "TH", "ZH"]
# ARPAbet as g2p-en numbers it: vowels by stress (0 none, 1 first, 2 second), `UW` also without.
_PHONEMES = sorted([f"{vowel}{stress}" for vowel in _VOWELS for stress in "012"] + [*_CONSONANTS, "UW"])
_SYMBOLS = ("<pad>", "<unk>", "<s>", "</s>", *_PHONEMES)
_PADDING, _IGNORED, _FIRST = 0, 1, 2


@register("conditioner", "phoneme", facts=reads("text"))
class PhonemeConditioner(Conditioner):
    """English text as phonemes, one learned vector each."""

    def __init__(
        self,
        output_dim: OutputDim = None,
        max_length: Annotated[int, Field(ge=1, description="most phonemes; the rest is cut off")] = 1024,
        project_out: ProjectOut = False,
        *,
        cond_dim: Runtime[int | None] = None,
    ) -> None:
        super().__init__(None, output_dim, project_out, cond_dim)
        self.max_length = max_length
        self.phoneme_embedder = nn.Embedding(_FIRST + len(_SYMBOLS), self.output_dim)
        self._rows = {symbol: row for row, symbol in enumerate(_SYMBOLS, start=_FIRST)}

    @cached_property
    def g2p(self) -> Any:
        """Text to phonemes."""
        from stable_audio_tools.core.packages import require

        return require("g2p_en").G2p()

    def encode(self, values: Values) -> Condition:
        spoken = [self.g2p(text)[: self.max_length] for text in require_texts(values)]
        lengths = torch.tensor([len(phonemes) for phonemes in spoken], device=self.device)
        longest = max(1, int(lengths.max()))
        rows = [
            [self._rows.get(symbol, _IGNORED) for symbol in phonemes] + [_PADDING] * (longest - len(phonemes))
            for phonemes in spoken
        ]
        embedded = self.phoneme_embedder(torch.tensor(rows, device=self.device))
        return Condition(self.project(embedded), torch.arange(longest, device=self.device) < lengths[:, None])


# ------------------------------------------------------------------ a table of tokens

_VOCABULARIES = {  # tokens of tokenizers, so that a model can be built without reading them
    **{name: 32100 for name in T5_WIDTHS if "mt5" not in name and "byt5" not in name},
    "bert-base-uncased": 30522,
    "google-bert/bert-base-uncased": 30522,
    "gpt2": 50257,
    "openai-community/gpt2": 50257,
    "roberta-base": 50265,
    "FacebookAI/roberta-base": 50265,
}


@register("conditioner", "lut", facts=reads("text"))
class TokenizerLUTConditioner(Conditioner):
    """Text as the tokens of a pretrained tokenizer, one learned vector each."""

    def __init__(
        self,
        tokenizer_name: Annotated[str, Field(min_length=1, description="hub name or folder of a tokenizer")],
        output_dim: OutputDim = None,
        max_length: _MaxLength = 1024,
        use_abs_pos_emb: Annotated[bool, Field(description="add a learned vector per position")] = False,
        project_out: ProjectOut = False,
        special_tokens: Annotated[Sequence[str], Field(description="tokens to add to the tokenizer's own")] = (),
        vocab_size: Annotated[
            int | None, Field(ge=1, description="tokens in all, where it must be known without reading the tokenizer")
        ] = None,
        *,
        cond_dim: Runtime[int | None] = None,
    ) -> None:
        super().__init__(None, output_dim, project_out, cond_dim)
        self.tokenizer_name = tokenizer_name
        self.special_tokens = list(special_tokens)
        self.max_length = max_length
        known = None if special_tokens or Path(tokenizer_name).is_dir() else _VOCABULARIES.get(tokenizer_name)
        self.token_embedder = nn.Embedding(vocab_size or known or len(self.tokenizer), self.output_dim)
        self.abs_pos_emb = AbsolutePositionalEmbedding(self.output_dim, max_length) if use_abs_pos_emb else None

    @cached_property
    def tokenizer(self) -> Any:
        """Splits text, the added tokens among it."""
        tokenizer = load_tokenizer(self.tokenizer_name, "tokenizer_name")
        if self.special_tokens:
            tokenizer.add_special_tokens({"additional_special_tokens": self.special_tokens})
        return tokenizer

    def encode(self, values: Values) -> Condition:
        rows = self.token_embedder.num_embeddings
        if len(self.tokenizer) > rows:
            raise UserError(
                f"tokenizer {self.tokenizer_name!r} knows {len(self.tokenizer)} tokens, and the table has {rows} rows; "
                f"set vocab_size to {len(self.tokenizer)}"
            )
        tokens = self.tokenizer(
            require_texts(values),
            truncation=True,
            max_length=self.max_length,
            padding="max_length",
            return_tensors="pt",
        )
        mask: Tensor = tokens["attention_mask"].to(self.device).bool()
        embedded = self.project(self.token_embedder(tokens["input_ids"].to(self.device)))
        if self.abs_pos_emb is not None:
            embedded = embedded + self.abs_pos_emb(embedded)
        return Condition(embedded * mask[..., None], mask)


_TOKENS = re.compile(r"\w+|[^\w\s]")
_LETTERS = 3  # in a run
_INITIAL_STD = 0.5


@register("conditioner", "words", facts=reads("text"))
class WordsConditioner(Conditioner):
    """Text as words, with vectors that are trained with the model.

    It needs no tokenizer, no download and no vocabulary. A word is the mean of learned vectors, one for the word and
    one for each run of three letters in it. All are found by hashing into one table, so an unseen word resembles the
    words it shares letters with.
    """

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

    def encode(self, values: Values) -> Condition:
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
    """Split a text into words and marks, in lower case and with compatible characters unified."""
    return _TOKENS.findall(unicodedata.normalize("NFKC", text).lower())


@lru_cache(maxsize=1 << 16)
def hash_pieces(word: str, table_size: int) -> tuple[int, ...]:
    """Return the rows of a word and of its runs of letters; the ends of the word count as letters."""
    framed = f"<{word}>"
    runs = [framed[start : start + _LETTERS] for start in range(max(1, len(framed) - _LETTERS + 1))]
    return tuple(crc32(piece.encode()) % table_size for piece in (word, *runs))
