"""Selects the mel transform or the decoder from flags, a published vocoder or a model config."""

from stable_audio_tools.core.config.sentences import nearest
from stable_audio_tools.core.errors import ConfigError
from stable_audio_tools.mel.bigvgan import PUBLISHED
from stable_audio_tools.mel.dataset import ImageSettings
from stable_audio_tools.mel.decoding import LogMelDecoder
from stable_audio_tools.mel.pretransform import MelPretransform, Node, mel_node_of
from stable_audio_tools.mel.settings import DecodeFlags, ImageFlags
from stable_audio_tools.mel.vocoders import GriffinLimVocoder
from stable_audio_tools.models.factory import create_pretransform_from_config
from stable_audio_tools.models.pretransforms import Pretransform

_METHODS = {"db_image": "image", "bigvgan": "bigvgan"}  # by variant
_DEFAULT_VOCODER = "bigvgan_v2_44khz_128band_256x"


def image_settings(flags: ImageFlags) -> ImageSettings:
    """Return the settings of the dataset from flags."""
    node, rate = _from_model(flags, flags.model_config) if flags.model_config else _from_flags(flags)
    config = node["config"]
    if flags.format == "arrow" and config.get("variant") == "db_image" and config.get("channels", 1) > 1:
        raise ConfigError("--format arrow: an image holds one channel; give --num-channels 1")
    return ImageSettings(
        flags.input_dir,
        flags.output_dir,
        node,
        rate,
        flags.frames,
        flags.format,
        flags.half,
        flags.max_examples,
        flags.num_workers,
    )


def _from_flags(flags: ImageFlags) -> tuple[Node, int]:
    """Return the node of the mel transform and its sample rate."""
    if flags.mel_spec_method == "bigvgan":
        return _from_vocoder(flags)
    if flags.bigvgan_model is not None:
        raise ConfigError("--bigvgan-model: goes with --mel-spec-method bigvgan")
    config = {
        "variant": "db_image",
        "ref": "slice_max",
        "quantize": 8,
        "n_mels": flags.mels,
        "n_fft": flags.n_fft or 1024,
        "hop_length": flags.hop_length or 256,
        "channels": flags.num_channels or 1,
    }
    return {"type": "mel", "config": config}, flags.sample_rate or 22050


def _from_vocoder(flags: ImageFlags) -> tuple[Node, int]:
    if flags.bigvgan_model is None:
        raise ConfigError(f"--bigvgan-model: is needed with --mel-spec-method bigvgan; one of {', '.join(PUBLISHED)}")
    name = flags.bigvgan_model.removeprefix("nvidia/")
    if name not in PUBLISHED:
        raise ConfigError(f"--bigvgan-model: no published vocoder named {name!r}; {nearest(name, PUBLISHED)}")
    vocoder = PUBLISHED[name]
    problems = flags.contradictions(
        {"hop_length": vocoder.hop_size, "n_fft": vocoder.n_fft, "sample_rate": vocoder.sampling_rate}, name
    )
    if flags.mels != vocoder.num_mels:
        advice = f"{flags.frames},{vocoder.num_mels}"
        problems.append(f"--resolution: {name} has {vocoder.num_mels} bands, not {flags.mels}; give {advice}")
    if problems:
        raise ConfigError(problems)
    config = {
        "variant": "bigvgan",
        "n_fft": vocoder.n_fft,
        "hop_length": vocoder.hop_size,
        "n_mels": vocoder.num_mels,
        "fmin": vocoder.fmin,
        "fmax": vocoder.fmax,
        "channels": flags.num_channels or 1,
        "vocoder": {"type": "bigvgan", "config": {"source": name}},
    }
    return {"type": "mel", "config": config}, vocoder.sampling_rate


def _from_model(flags: ImageFlags, path: str) -> tuple[Node, int]:
    """Return the mel transform of a model config without its vocoder, whose files may not exist yet."""
    node, rate = mel_node_of(path)
    config = {key: value for key, value in (node.get("config") or {}).items() if key != "vocoder"}
    transform = create_pretransform_from_config({"type": "mel", "config": config}, rate)
    assert isinstance(transform, MelPretransform)
    facts = transform.transform.settings
    has = {"mel_spec_method": _METHODS[str(facts["variant"])], "num_channels": transform.io_channels}
    has |= {name: facts[name] for name in ("hop_length", "n_fft", "sample_rate")}
    problems = flags.contradictions(has, path)
    if "," in flags.resolution and flags.mels != facts["n_mels"]:
        problems.append(f"--resolution: {path} has {facts['n_mels']} bands, not {flags.mels}; give {flags.frames}")
    vocoder = _vocoder_of(node)
    if (flags.bigvgan_model or vocoder).removeprefix("nvidia/") != vocoder:
        problems.append(f"--bigvgan-model: {path} has the vocoder {vocoder}; leave the flag out")
    if problems:
        raise ConfigError(problems)
    return {"type": "mel", "config": config}, rate


def _vocoder_of(node: Node) -> str:
    """Return the source of a BigVGAN, or the type of another vocoder."""
    vocoder = (node.get("config") or {}).get("vocoder") or {"type": "griffin_lim"}
    return str((vocoder.get("config") or {}).get("source", vocoder.get("type"))).removeprefix("nvidia/")


def decoder_of(flags: DecodeFlags) -> tuple[Pretransform, Node]:
    """Return the decoder, and its description for the files."""
    if flags.model_config is None:
        source = flags.bigvgan_model or _DEFAULT_VOCODER
        return LogMelDecoder(source, flags.bigvgan_config), {"vocoder": source}
    node, rate = mel_node_of(flags.model_config)
    decoder = create_pretransform_from_config(node, rate)
    assert isinstance(decoder, Pretransform)
    if flags.chunk_frames is not None and isinstance(getattr(decoder, "vocoder", None), GriffinLimVocoder):
        raise ConfigError("--chunk-frames: Griffin-Lim finds the phases of a spectrogram as a whole; leave it out")
    return decoder, {"pretransform": node}
