"""Settings of evaluation: distances between sets of audio, captioned tracks, reconstruction."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from stable_audio_tools.core.seeds import MAX_SEED
from stable_audio_tools.core.settings import Settings, option
from stable_audio_tools.data.settings import AudioFileSettings

Unit = Literal["frames", "files"]
KLDirection = Literal["generated-from-reference", "reference-from-generated"]

_LONGEST = 10**9  # seconds; longer than any file
_SCORES = "scores in addition to the Fréchet distance"
_SAMPLING = "sampling; the default is the recommended value for the model"
_SONG_DESCRIBER = Path("dataset/small-700")


# ------------------------------------------------------------------ sets of audio


@dataclass(frozen=True, kw_only=True)
class ScoringSettings(Settings):
    """Scores between two sets of audio and their settings."""

    limit: int | None = option(
        None, "use the first N files of each folder", group="sets and embedders", metavar="N", ge=1
    )
    read_fadtk: bool = option(
        False, "read the vectors or statistics that fadtk wrote into a folder", group="sets and embedders"
    )
    inf: bool = option(False, "extrapolate to infinitely many files", group=_SCORES)
    per_song: bool = option(False, "distance of each generated file alone", group=_SCORES, flags=("--indiv",))
    kernel: bool = option(False, "kernel distance over files (unbiased), with an interval", group=_SCORES)
    kad: bool = option(False, "kernel audio distance of kadtk, and the same over files with an interval", group=_SCORES)
    coverage: bool = option(False, "precision, recall, density and coverage", group=_SCORES)
    diversity: bool = option(False, "Vendi score of both sets", group=_SCORES)
    held_out: str | None = option(
        None,
        "folder of audio like the training data, but not in it: is generated audio nearer to the reference (the "
        "training set)?",
        group=_SCORES,
        metavar="SET",
    )
    significance: bool = option(
        False,
        "compare the generated sets with each other by paired bootstrap over files of the same name",
        group=_SCORES,
    )
    resamples: int = option(500, "resamples of the paired bootstrap", group=_SCORES, metavar="N", ge=100)
    paired: bool = option(
        False,
        "compare files of the same name: SI-SDR, STFT and mel distance, and KL if the embedder is a classifier",
        group=_SCORES,
    )
    kl_direction: KLDirection = option(
        "generated-from-reference",
        "KL(generated || reference) as in stable-audio-metrics, or the reverse as in AudioGen and audioldm_eval",
        group=_SCORES,
    )
    unit: Unit = option("frames", "vectors that are counted: each window, or the mean of each file", group=_SCORES)
    seed: int = option(0, "seed of random subsets and resamples", group=_SCORES, ge=0)
    batch_size: int = option(8, "windows per batch", group="work", metavar="N", ge=1)
    num_workers: int = option(4, "files to decode in parallel", group="work", metavar="N", flags=("-w",), ge=1)


# ------------------------------------------------------------------ captioned tracks


@dataclass(frozen=True, kw_only=True)
class EmbedTracksSettings(Settings):
    """Settings for embedding captioned tracks as references for checkpoints."""

    csv_path: Path = option(_SONG_DESCRIBER / "song_describer.csv", "table of captions", metavar="CSV")
    audio_dir: Path = option(_SONG_DESCRIBER / "audio", "folder of the tracks", metavar="DIR")
    output_path: Path = option(_SONG_DESCRIBER / "song_describer_clap_embeddings.npz", "file to write", metavar="NPZ")
    prompt_source: Literal["caption", "training_style"] = option(
        "caption", "prompts: the captions, or the output of a metadata module for the track"
    )
    prompt_seed: int = option(0, "random seed of that module")
    custom_metadata_module: Path | None = option(
        None, "metadata module (default: the shipped custom_md_fma.py)", metavar="PY"
    )
    clap_model_name: str = option(
        "laion/clap-htsat-fused",
        "hub name or folder of a CLAP of transformers, or a checkpoint of laion-clap (.pt)",
        metavar="NAME",
    )
    embedder: str | None = option(
        None, "another embedder, such as logmel; one without texts gives no agreement", metavar="NAME"
    )
    clap_sample_rate: int = option(48000, "48000, the sample rate of CLAP", metavar="HZ")
    audio_batch_size: int = option(8, "windows per batch", metavar="N", ge=1)
    text_batch_size: int = option(64, "texts per batch", metavar="N", ge=1)
    num_workers: int = option(4, "files to decode in parallel", metavar="N", ge=1)
    limit: int | None = option(None, "use the first N rows", metavar="N", ge=1)
    cache_dir: Path | None = option(
        None, "folder of cached vectors (default: embeddings, next to the output)", metavar="DIR"
    )
    device: str = option("auto", "cpu, cuda, cuda:1, mps, or the best available", metavar="NAME")

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        if self.clap_sample_rate != 48000:
            yield f"--clap-sample-rate: expected 48000, got {self.clap_sample_rate}"


@dataclass(frozen=True, kw_only=True)
class CaptionSampling(Settings):
    """Sampling of audio for captions; None is the recommended value for the model's objective."""

    steps: int | None = option(None, "sampling steps", group=_SAMPLING, metavar="N", ge=1)
    cfg_scale: float | None = option(None, "guidance", group=_SAMPLING, metavar="X")
    sampler_type: str | None = option(None, "sampler, such as dpmpp-3m-sde", group=_SAMPLING, metavar="NAME")
    sigma_min: float | None = option(None, "lowest noise level", group=_SAMPLING, metavar="X")
    sigma_max: float | None = option(None, "highest noise level", group=_SAMPLING, metavar="X")
    seed: int = option(
        0, "random seed; the row of a prompt is added to it; -1: draw a seed", group=_SAMPLING, ge=-1, le=MAX_SEED
    )
    precision: str = option(
        "float32",
        "precision; training evaluates in float32",
        group="model",
        choices=("float32", "bfloat16", "float16", "auto"),
    )

    def describe(self) -> dict[str, object]:
        """Return all settings, for result files."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class SongDescriberSettings(CaptionSampling):
    """Settings for scoring a checkpoint on captioned tracks."""

    model_config: Path = option(help="model config", group="model", metavar="JSON")
    ckpt_path: Path = option(help="weights, or a training checkpoint", group="model", metavar="FILE")
    pretransform_ckpt_path: Path | None = option(
        None, "weights of the model's autoencoder", group="model", metavar="FILE"
    )
    device: str = option("auto", "cpu, cuda, cuda:1, mps, or the best available", group="model", metavar="NAME")
    precomputed_embeddings_path: Path = option(
        _SONG_DESCRIBER / "song_describer_clap_embeddings.npz",
        "output of precompute_song_describer_clap_embeddings.py",
        group="references",
        metavar="NPZ",
    )
    clap_model_name: str | None = option(
        None, "name or file of CLAP (default: as in the file of references)", group="references", metavar="NAME"
    )
    clap_batch_size: int = option(8, "windows per batch", group="references", metavar="N", ge=1)
    limit: int | None = option(
        None, "score N prompts, of as many tracks as possible", group="references", metavar="N", ge=1
    )
    gen_batch_size: int = option(4, "items per batch", group=_SAMPLING, metavar="N", ge=1)
    output: Path = option(Path("outputs/song_describer"), "folder to write to", metavar="DIR", flags=("-o",))


# ------------------------------------------------------------------ reconstruction


@dataclass(frozen=True, kw_only=True)
class ReconstructionSettings(AudioFileSettings):
    """Settings of reconstruction; with the source they determine the output."""

    frame_duration: float = option(1.0, "length of a frame", metavar="SECONDS", gt=0, le=_LONGEST)
    overlap_rate: float = option(0.01, "share of a frame that is cross-faded", metavar="X", ge=0, lt=1)
    batch_size: int = option(20, "frames per batch", metavar="N", ge=1)
    seed: int = option(0, "random seed of bottlenecks that add noise", ge=0, le=MAX_SEED)
