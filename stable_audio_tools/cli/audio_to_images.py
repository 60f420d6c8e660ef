"""`audio-to-images`: a folder of audio to a dataset of mel spectrograms."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stable_audio_tools.cli.command import command, make_parser

_METHODS = {"db_image": "image", "bigvgan": "bigvgan"}  # by variant
_DEFAULTS = {"hop_length": 256, "n_fft": 1024, "sample_rate": 22050, "num_channels": 1}


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "audio_to_images.py",
        "Cut audio files into slices and write their mel spectrograms: as latents that train.py reads, or as a Hugging "
        "Face dataset. Slices without sound are left out and named. A run that was killed goes on when started again.",
    )
    _add(made, "input-dir", required=True, metavar="DIR", help="audio files, folders below included")
    _add(made, "output-dir", default="data", metavar="DIR", help="folder to write to")
    made.add_argument("--format", choices=("latents", "arrow"), default="latents", help="what is written")
    mel = made.add_argument_group("spectrogram")
    mel.add_argument("--resolution", default="256", metavar="W[,H]", help="frames and bands of a slice; N is N,N")
    methods = tuple(_METHODS.values())
    _add(mel, "mel-spec-method", choices=methods, help="8-bit decibels, or log amplitudes (else image)")
    _add(mel, "bigvgan-model", metavar="NAME", help="the published vocoder whose bands to make")
    _add(mel, "hop-length", type=int, metavar="N", help="image: samples between frames (else 256)")
    _add(mel, "n-fft", type=int, metavar="N", help="image: samples of a spectrum (else 1024)")
    _add(mel, "sample-rate", type=int, metavar="HZ", help="image: rate to resample to (else 22050)")
    _add(mel, "num-channels", type=int, choices=(1, 2), help="1 folds to mono (else 1)")
    _add(mel, "model-config", metavar="JSON", help="take rate, channels, bands and mel transform of this model instead")
    work = made.add_argument_group("work")
    _add(work, "max-examples", type=int, metavar="N", help="cut the first N slices only")
    _add(work, "num-workers", type=int, default=2, metavar="N", help="processes that read and transform")
    work.add_argument("--half", action="store_true", help="keep latents in float16")
    _add(work, "push-to-hub", metavar="NAME", help="upload the folder to this dataset repository on huggingface.co")
    return made


def _add(group: Any, name: str, **about: Any) -> None:
    """A flag with dashes, which may be written with underscores too."""
    flags = [f"--{name}", f"--{name.replace('-', '_')}"]
    action = group.add_argument(*dict.fromkeys(flags), **about)
    if len(action.option_strings) > 1 and "metavar" not in about and "choices" not in about:
        action.metavar = name.rpartition("-")[2].upper()


def run(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.mel.dataset import make_dataset
    from stable_audio_tools.mel.hub import upload_dataset

    settings = settings_from(arguments)
    done = make_dataset(settings)
    print(f"{settings.output_dir}: {done.made} slices made, {done.kept} kept, {done.num_left_out} left out", flush=True)
    if arguments.push_to_hub is not None:
        print(upload_dataset(settings.output_dir, arguments.push_to_hub), flush=True)
    return 0


def settings_from(arguments: argparse.Namespace) -> Any:
    """Flags, or those of a published vocoder, or of a model config, as settings."""
    from stable_audio_tools.core.errors import ConfigError
    from stable_audio_tools.mel.dataset import ImageSettings

    numbers = {"hop_length": 1, "n_fft": 2, "sample_rate": 1, "num_workers": 0, "max_examples": 1}
    problems = [
        f"--{name.replace('_', '-')}: expected at least {least}, got {value}"
        for name, least in numbers.items()
        if (value := getattr(arguments, name)) is not None and value < least
    ]
    if arguments.format == "arrow" and arguments.half:
        problems.append("--half: an Arrow dataset holds images, or float32; leave the flag out")
    output = Path(arguments.output_dir).absolute()
    there = next(path for path in (output, *output.parents) if path.exists())
    if not there.is_dir():
        problems.append(f"--output-dir: {there} is a file; choose a folder")
    if problems:
        raise ConfigError(problems)
    frames, mels = _resolution(arguments.resolution)
    node, rate = _from_model(arguments) if arguments.model_config else _from_flags(arguments, mels)
    config = node["config"]
    if arguments.format == "arrow" and config.get("variant") == "db_image" and config.get("channels", 1) > 1:
        raise ConfigError("--format arrow: an image holds one channel; give --num-channels 1")
    return ImageSettings(
        arguments.input_dir,
        arguments.output_dir,
        node,
        rate,
        frames,
        arguments.format,
        arguments.half,
        arguments.max_examples,
        arguments.num_workers,
    )


def _resolution(text: str) -> tuple[int, int]:
    from stable_audio_tools.core.errors import ConfigError

    parts = text.split(",")
    if len(parts) > 2 or not all(part.strip().isdigit() and int(part) for part in parts):
        raise ConfigError(f"--resolution: expected frames, or frames,bands, as in 2048,128; got {text!r}")
    frames, mels = int(parts[0]), int(parts[-1])
    return frames, mels


def _from_flags(arguments: argparse.Namespace, mels: int) -> tuple[dict[str, Any], int]:
    from stable_audio_tools.core.errors import ConfigError

    if arguments.mel_spec_method == "bigvgan":
        return _from_vocoder(arguments, mels)
    if arguments.bigvgan_model is not None:
        raise ConfigError("--bigvgan-model: goes with --mel-spec-method bigvgan")
    given = _DEFAULTS | {name: value for name in _DEFAULTS if (value := getattr(arguments, name)) is not None}
    config: dict[str, Any] = {"variant": "db_image", "ref": "slice_max", "quantize": 8, "n_mels": mels}
    config |= {"n_fft": given["n_fft"], "hop_length": given["hop_length"], "channels": given["num_channels"]}
    return {"type": "mel", "config": config}, given["sample_rate"]


def _from_vocoder(arguments: argparse.Namespace, mels: int) -> tuple[dict[str, Any], int]:
    from stable_audio_tools.core.config.sentences import nearest
    from stable_audio_tools.core.errors import ConfigError
    from stable_audio_tools.mel.bigvgan import PUBLISHED

    if arguments.bigvgan_model is None:
        raise ConfigError(f"--bigvgan-model: is needed with --mel-spec-method bigvgan; one of {', '.join(PUBLISHED)}")
    name = arguments.bigvgan_model.removeprefix("nvidia/")
    if name not in PUBLISHED:
        raise ConfigError(f"--bigvgan-model: no published vocoder named {name!r}; {nearest(name, PUBLISHED)}")
    vocoder = PUBLISHED[name]
    has = {"hop_length": vocoder.hop_size, "n_fft": vocoder.n_fft, "sample_rate": vocoder.sampling_rate}
    problems = _contradictions(arguments, has, name)
    if mels != vocoder.num_mels:
        wanted = f"{arguments.resolution.split(',')[0]},{vocoder.num_mels}"
        problems.append(f"--resolution: {name} has {vocoder.num_mels} bands, not {mels}; give {wanted}")
    if problems:
        raise ConfigError(problems)
    config = {
        "variant": "bigvgan",
        "n_fft": vocoder.n_fft,
        "hop_length": vocoder.hop_size,
        "n_mels": vocoder.num_mels,
        "fmin": vocoder.fmin,
        "fmax": vocoder.fmax,
        "channels": arguments.num_channels or _DEFAULTS["num_channels"],
        "vocoder": {"type": "bigvgan", "config": {"source": name}},
    }
    return {"type": "mel", "config": config}, vocoder.sampling_rate


def _contradictions(arguments: argparse.Namespace, has: Mapping[str, Any], whose: str) -> list[str]:
    """A sentence for each flag that was given and says something else."""
    return [
        f"--{name.replace('_', '-')}: {whose} has {value}, not {given}; leave the flag out"
        for name, value in has.items()
        if (given := getattr(arguments, name)) not in (None, value)
    ]


def _from_model(arguments: argparse.Namespace) -> tuple[dict[str, Any], int]:
    """As given, but without the vocoder, which need not be there yet."""
    from stable_audio_tools.core.errors import ConfigError
    from stable_audio_tools.mel.pretransform import MelPretransform, mel_node_of
    from stable_audio_tools.models.factory import create_pretransform_from_config

    path = arguments.model_config
    node, rate = mel_node_of(path)
    config = {key: value for key, value in (node.get("config") or {}).items() if key != "vocoder"}
    made = create_pretransform_from_config({"type": "mel", "config": config}, rate)
    assert isinstance(made, MelPretransform)
    settings = made.transform.settings
    has = {"mel_spec_method": _METHODS[settings["variant"]], "num_channels": made.io_channels}
    has |= {name: settings[name] for name in ("hop_length", "n_fft", "sample_rate")}
    problems = _contradictions(arguments, has, path)
    frames, _, mels = arguments.resolution.partition(",")
    if mels and int(mels) != settings["n_mels"]:
        problems.append(f"--resolution: {path} has {settings['n_mels']} bands, not {mels}; give {frames}")
    vocoder = _vocoder_of(node)
    if (arguments.bigvgan_model or vocoder).removeprefix("nvidia/") != vocoder:
        problems.append(f"--bigvgan-model: {path} has the vocoder {vocoder}; leave the flag out")
    if problems:
        raise ConfigError(problems)
    return {"type": "mel", "config": config}, rate


def _vocoder_of(node: Mapping[str, Any]) -> str:
    """The source of a BigVGAN, or the type of another vocoder."""
    vocoder = (node.get("config") or {}).get("vocoder") or {"type": "griffin_lim"}
    return str((vocoder.get("config") or {}).get("source", vocoder.get("type"))).removeprefix("nvidia/")


main = command(parser, run)
