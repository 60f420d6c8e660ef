"""Settings of evaluation: distances between sets of audio, captioned tracks, reconstruction."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from stable_audio_tools.core.seeds import MAX_SEED
from stable_audio_tools.core.settings import Settings, option
from stable_audio_tools.data.settings import AudioFileSettings

Unit = Literal["frames", "files"]

_LONGEST = 10**9  # seconds of a frame; any file is shorter
_SCORES = "scores beside the Fréchet distance"
_SAMPLING = "sampling; as recommended for the model's objective where left out"
_SONG_DESCRIBER = Path("dataset/small-700")


# ------------------------------------------------------------------ sets of audio


@dataclass(frozen=True, kw_only=True)
class ScoringSettings(Settings):
    """What is measured between two sets of audio, and how."""

    limit: int | None = option(
        None, "take the first N files of each folder", group="sets and embedders", metavar="N", ge=1
    )
    read_fadtk: bool = option(
        False, "take the vectors or statistics that fadtk left in a folder", group="sets and embedders"
    )
    inf: bool = option(False, "extrapolate to endlessly many frames", group=_SCORES)
    per_song: bool = option(False, "the distance of each generated file alone", group=_SCORES, flags=("--indiv",))
    kernel: bool = option(False, "kernel distance (unbiased), with a bootstrap interval", group=_SCORES)
    coverage: bool = option(False, "density and coverage", group=_SCORES)
    paired: bool = option(
        False,
        "compare files of the same name: SI-SDR, STFT and mel distance, and KL where the embedder is a classifier",
        group=_SCORES,
    )
    unit: Unit = option("frames", "what counts as one: a window, or a file's mean", group=_SCORES)
    seed: int = option(0, "seed of random draws: parts of a set, bootstrap samples", group=_SCORES, ge=0)
    batch_size: int = option(8, "windows through a network at once", group="work", metavar="N", ge=1)
    num_workers: int = option(
        4, "files to decode ahead, at the same time", group="work", metavar="N", flags=("-w",), ge=1
    )


# ------------------------------------------------------------------ captioned tracks


@dataclass(frozen=True, kw_only=True)
class EmbedTracksSettings(Settings):
    """Which captioned tracks are embedded, as references for checkpoints, and by what."""

    csv_path: Path = option(_SONG_DESCRIBER / "song_describer.csv", "table of captions", metavar="CSV")
    audio_dir: Path = option(_SONG_DESCRIBER / "audio", "folder of their tracks", metavar="DIR")
    output_path: Path = option(_SONG_DESCRIBER / "song_describer_clap_embeddings.npz", "file to write", metavar="NPZ")
    prompt_source: Literal["caption", "training_style"] = option(
        "caption", "prompts: the captions, or what a metadata module writes for the track"
    )
    prompt_seed: int = option(0, "seed of what that module draws")
    custom_metadata_module: Path | None = option(None, "that module (else the shipped custom_md_fma.py)", metavar="PY")
    clap_model_name: str = option(
        "laion/clap-htsat-fused",
        "hub name or folder of a CLAP of transformers, or a checkpoint of laion-clap (.pt)",
        metavar="NAME",
    )
    embedder: str | None = option(
        None, "another embedder, such as logmel; one that takes no texts gives no agreement", metavar="NAME"
    )
    clap_sample_rate: int = option(48000, "48000, the rate of CLAP", metavar="HZ")
    audio_batch_size: int = option(8, "windows through the network at once", metavar="N", ge=1)
    text_batch_size: int = option(64, "texts through CLAP at once", metavar="N", ge=1)
    num_workers: int = option(4, "files to decode ahead, at the same time", metavar="N", ge=1)
    limit: int | None = option(None, "take the first N rows", metavar="N", ge=1)
    cache_dir: Path | None = option(
        None, "folder of cached vectors (else embeddings, beside the output)", metavar="DIR"
    )
    device: str = option("auto", "cpu, cuda, cuda:1, mps, or the best available", metavar="NAME")

    def problems(self) -> Iterable[str]:
        if self.clap_sample_rate != 48000:
            yield f"--clap-sample-rate: CLAP takes 48000 Hz, got {self.clap_sample_rate}"


@dataclass(frozen=True, kw_only=True)
class CaptionSampling(Settings):
    """How audio for captions is generated; None stands for what is recommended for the model's objective."""

    steps: int | None = option(None, "sampling steps", group=_SAMPLING, metavar="N", ge=1)
    cfg_scale: float | None = option(None, "guidance", group=_SAMPLING, metavar="X")
    sampler_type: str | None = option(None, "sampler, such as dpmpp-3m-sde", group=_SAMPLING, metavar="NAME")
    sigma_min: float | None = option(None, "lowest noise level", group=_SAMPLING, metavar="X")
    sigma_max: float | None = option(None, "highest noise level", group=_SAMPLING, metavar="X")
    seed: int = option(0, "a prompt adds its row to it; -1 draws one", group=_SAMPLING, ge=-1, le=MAX_SEED)
    precision: str = option(
        "float32",
        "float32 is what training measures in",
        group="model",
        choices=("float32", "bfloat16", "float16", "auto"),
    )

    def describe(self) -> dict[str, Any]:
        """All of it, for the results."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class SongDescriberSettings(CaptionSampling):
    """Which checkpoint is judged by captioned tracks, and how."""

    model_config: Path = option(help="model config", group="model", metavar="JSON")
    ckpt_path: Path = option(help="weights, or a training checkpoint", group="model", metavar="FILE")
    pretransform_ckpt_path: Path | None = option(None, "weights of its autoencoder", group="model", metavar="FILE")
    device: str = option("auto", "cpu, cuda, cuda:1, mps, or the best available", group="model", metavar="NAME")
    precomputed_embeddings_path: Path = option(
        _SONG_DESCRIBER / "song_describer_clap_embeddings.npz",
        "what precompute_song_describer_clap_embeddings.py wrote",
        group="references",
        metavar="NPZ",
    )
    clap_model_name: str | None = option(
        None, "where CLAP is (else as in the file of references)", group="references", metavar="NAME"
    )
    clap_batch_size: int = option(8, "windows through CLAP at once", group="references", metavar="N", ge=1)
    limit: int | None = option(None, "judge by N prompts, of as many tracks", group="references", metavar="N", ge=1)
    gen_batch_size: int = option(4, "items to generate at once", group=_SAMPLING, metavar="N", ge=1)
    output: Path = option(Path("outputs/song_describer"), "folder to write to", metavar="DIR", flags=("-o",))


# ------------------------------------------------------------------ reconstruction


@dataclass(frozen=True, kw_only=True)
class ReconstructionSettings(AudioFileSettings):
    """How a folder is reconstructed; together with the source they decide what a file sounds like."""

    frame_duration: float = option(1.0, "length of a frame", metavar="SECONDS", gt=0, le=_LONGEST)
    overlap_rate: float = option(0.01, "share of a frame that is cross-faded", metavar="X", ge=0, lt=1)
    batch_size: int = option(20, "frames through the network at once", metavar="N", ge=1)
    seed: int = option(0, "seed of the noise that some bottlenecks add", ge=0, le=MAX_SEED)
