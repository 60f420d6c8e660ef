"""`data images` (audio to mel spectrograms), `mel decode` (back to audio), `mel convert` (pipelines of diffusers)."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from stable_audio_tools.cli.command import Command
from stable_audio_tools.core.config.json_files import JsonObject
from stable_audio_tools.core.settings import Settings, option
from stable_audio_tools.mel.settings import DecodeFlags, ImageFlags


def run_images(settings: ImageFlags) -> None:
    from stable_audio_tools.mel.choice import image_settings
    from stable_audio_tools.mel.dataset import make_dataset, upload_dataset

    done = make_dataset(image_settings(settings))
    print(
        f"{settings.output_dir}: {done.written} slices written, {done.kept} kept, {done.num_left_out} skipped",
        flush=True,
    )
    if settings.push_to_hub is not None:
        print(upload_dataset(settings.output_dir, settings.push_to_hub), flush=True)


images = Command(
    ImageFlags,
    run_images,
    "Cut audio files into slices and write their mel spectrograms: as latents for train.py, or as a Hugging Face "
    "dataset. Silent slices are skipped and listed. A stopped run continues when started again.",
)


def run_decode(settings: DecodeFlags) -> int:
    from stable_audio_tools.core.devices import pick_device
    from stable_audio_tools.inference.batch.outputs import OutputFolder
    from stable_audio_tools.mel.choice import decoder_of
    from stable_audio_tools.mel.decoding import check_details, decode_folder, find_mels

    folder = settings.directory
    files = find_mels(folder, settings.format)
    decoder, about = decoder_of(settings)
    check_details(decoder, folder, files)
    output = OutputFolder(settings.output_dir or folder / "audio")

    def report(record: JsonObject) -> None:
        if settings.json:
            print(json.dumps(record), flush=True)

    failed = decode_folder(decoder, about, folder, files, output, settings, pick_device(settings.device), report)
    output.write_manifest(list(files))
    if not settings.json:
        print(f"{output.path}: {len(output.records(list(files)))} of {len(files)} decoded", flush=True)
    return 1 if failed else 0


decode = Command(
    DecodeFlags,
    run_decode,
    "Convert every mel spectrogram (.pt, .npy, .safetensors) of a folder to audio. BigVGAN alone expects natural "
    "logarithms; with --model-config the values are those of its mel transform, in [-1, 1]. Finished files are kept. "
    "Exit status 1 if a file could not be read. Several GPUs: torchrun --nproc_per_node N decode_mel.py ...",
)


@dataclass(frozen=True, kw_only=True)
class PipelineSettings(Settings):
    """Settings of `mel convert`."""

    output_dir: Path = option(help="folder to write", metavar="DIR")
    from_pipeline: Path | None = option(None, "pipeline to convert to a model", metavar="DIR")
    model_config: Path | None = option(None, "config of the model to convert to a pipeline", metavar="JSON")
    ckpt_path: Path | None = option(None, "weights of the model, as written by unwrap_model.py", metavar="FILE")

    def problems(self) -> Iterable[str]:
        yield from super().problems()
        files = (self.model_config, self.ckpt_path)
        if (self.from_pipeline is None) == (files == (None, None)):
            yield "give --from-pipeline, or --model-config with --ckpt-path"
        elif self.from_pipeline is None and None in files:
            yield "--model-config, --ckpt-path: a pipeline needs both"
        if self.output_dir.exists() and any(self.output_dir.iterdir()):
            yield f"--output-dir: {self.output_dir} is not empty; choose a new folder"


def run_convert(settings: PipelineSettings) -> None:
    from stable_audio_tools.core.config import load, save
    from stable_audio_tools.core.errors import ConfigError
    from stable_audio_tools.mel.pipeline_folders import INDEX_NAME, PIPELINES, write_pipeline
    from stable_audio_tools.models.checkpoints import save_weights
    from stable_audio_tools.models.checkpoints.formats import CONFIG_NAME
    from stable_audio_tools.models.pretrained import load_model

    output = settings.output_dir
    if settings.from_pipeline is not None:
        if not (settings.from_pipeline / INDEX_NAME).is_file():
            raise ConfigError(f"--from-pipeline: {settings.from_pipeline} contains no model_index.json")
        model, config = PIPELINES.load(settings.from_pipeline)
        output.mkdir(parents=True, exist_ok=True)
        save(config, output / CONFIG_NAME)
        save_weights(model, output / "model.safetensors", model_config=config)
    elif settings.model_config is not None and settings.ckpt_path is not None:
        config = load(settings.model_config)
        write_pipeline(load_model(config, settings.ckpt_path), config, output)
    print(f"wrote {output}")


convert = Command(
    PipelineSettings,
    run_convert,
    "Convert a folder of diffusers' AudioDiffusionPipeline to model_config.json and model.safetensors, or a model to "
    "such a pipeline.",
)
