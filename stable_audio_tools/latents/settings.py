"""Settings of encoding datasets to latents, and texts to conditions."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stable_audio_tools.core.seeds import MAX_SEED
from stable_audio_tools.core.settings import Settings, flag_of, option

Pooling = Literal["first", "mean", "none"]
Names = Literal["whole", "name", "stem"]


@dataclass(frozen=True)
class PreEncodeSettings(Settings):
    """The dataset to encode, the autoencoder, and the division of the work."""

    dataset_config: str = option(help="dataset of audio", metavar="JSON")
    output_path: str = option(help="folder to write to", metavar="DIR")
    model_config: str | None = option(
        None, "config of the autoencoder, or of a model that holds one", group="autoencoder", metavar="JSON"
    )
    ckpt_path: str | None = option(
        None, "its weights; training checkpoints will do", group="autoencoder", metavar="FILE"
    )
    pretrained_name: str | None = option(
        None, "a model on huggingface.co, or a folder, instead", group="autoencoder", metavar="NAME"
    )
    model_half: bool = option(False, "encode, and keep latents, in float16", group="autoencoder")
    batch_size: int = option(1, "items through the network at once", group="work", metavar="N", ge=1)
    sample_size: int = option(1_320_960, "samples to pad or crop to", group="work", metavar="N", ge=1)
    is_discrete: bool = option(False, "write the codes of a discrete autoencoder", group="autoencoder")
    deterministic: bool = option(
        False,
        "write the mean of the distribution of a variational autoencoder instead of a sample",
        group="autoencoder",
    )
    limit: int | None = option(None, "encode the first N items only", group="work", metavar="N", ge=1)
    limit_batches: int | None = option(None, "encode N batches of each process only", group="work", metavar="N", ge=1)
    shuffle: bool = option(False, "random order instead of the order of the files", group="work")
    seed: int = option(0, "seed of crops, of the order, and of noise", group="work", ge=0, le=MAX_SEED)
    chunked: bool = option(False, "encode in overlapping chunks, for long items", group="work")
    chunk_size: int = option(128, "length of a chunk", group="work", metavar="FRAMES", ge=1)
    overlap: int = option(32, "frames that neighbours share", group="work", metavar="FRAMES", ge=0)
    device: str = option("auto", "cpu, cuda, mps, or the best available", group="machine")
    num_workers: int = option(4, "processes that read audio, each", group="machine", metavar="N", ge=0)
    num_nodes: int = option(1, "machines that work together", group="machine", metavar="N", ge=1)
    strategy: str = option(
        "auto", "a process for each GPU (auto, ddp); 'single': only one", group="machine", metavar="NAME"
    )

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        files = bool(self.model_config), bool(self.ckpt_path)
        if any(files) == bool(self.pretrained_name) or (any(files) and not all(files)):
            yield "give --model-config and --ckpt-path (an autoencoder and its weights), or --pretrained-name"


@dataclass(frozen=True, kw_only=True)
class EncodeTextSettings(Settings):
    """The texts to encode, and the encoder."""

    output: Path = option(help="the .safetensors file to write", metavar="FILE")
    texts: Path | None = option(None, ".txt (a text per line), or .csv or .jsonl with prompt and name", metavar="FILE")
    from_pickle: Path | None = option(
        None, "encodings by name, of an older toolkit, instead of --texts", metavar="FILE"
    )
    t5: str | None = option(
        None, "T5 model, by name on the Hub or folder (default: t5-small)", group="encoder of --texts", metavar="NAME"
    )
    clap_ckpt: str | None = option(
        None, "LAION's CLAP weights, instead of T5", group="encoder of --texts", metavar="FILE"
    )
    clap_model: str | None = option(
        None,
        "CLAP model of transformers, by name or folder, instead of T5",
        group="encoder of --texts",
        metavar="NAME",
    )
    pooling: Pooling | None = option(
        None, "one vector per text, or all its tokens (default: mean)", group="encoder of --texts"
    )
    max_length: int | None = option(
        None, "longest text, in tokens of T5 (default: 128)", group="encoder of --texts", metavar="N", ge=1
    )
    batch_size: int | None = option(
        None, "texts per batch (default: 16)", group="encoder of --texts", metavar="N", ge=1
    )
    device: str | None = option(
        None, "cpu, cuda, mps (default: the best available)", group="encoder of --texts", metavar="NAME"
    )
    names: Names | None = option(None, "part of a path that becomes the name, for --from-pickle (default: whole)")

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if (self.texts is None) == (self.from_pickle is None):
            yield "give --texts or --from-pickle, one of them"
            return
        encoder = ("t5", "clap_ckpt", "clap_model", "pooling", "max_length", "batch_size", "device")
        idle, source = (encoder, "--from-pickle") if self.from_pickle is not None else (("names",), "--texts")
        for name in idle:
            if getattr(self, name) is not None:
                yield f"{flag_of(name)}: has no effect with {source}; remove it"
        if self.output.suffix != ".safetensors":
            yield f"--output: expected a name ending in .safetensors, got {self.output.name!r}"
        encoders = [flag_of(name) for name in encoder[:3] if getattr(self, name) is not None]
        if len(encoders) > 1 and self.from_pickle is None:
            yield f"{' and '.join(encoders)}: give one encoder"
