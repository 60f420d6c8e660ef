"""`convert-pipeline`: audio diffusion pipelines of diffusers to model folders, and back."""

import argparse
from pathlib import Path

from stable_audio_tools.cli.command import command, make_parser


def parser() -> argparse.ArgumentParser:
    made = make_parser(
        "convert_pipeline.py",
        "Turn a folder of diffusers' AudioDiffusionPipeline into one with model_config.json and model.safetensors, or "
        "a model into such a pipeline.",
    )
    made.add_argument("--output-dir", type=Path, required=True, metavar="DIR", help="folder to write")
    made.add_argument("--from-pipeline", type=Path, metavar="DIR", help="the pipeline to turn into a model")
    made.add_argument("--model-config", type=Path, metavar="JSON", help="config of the model to turn into a pipeline")
    made.add_argument("--ckpt-path", type=Path, metavar="FILE", help="its weights, as unwrap_model.py writes them")
    return made


def run(arguments: argparse.Namespace) -> int:
    from stable_audio_tools.core.config import load, save
    from stable_audio_tools.core.errors import ConfigError
    from stable_audio_tools.models.checkpoints import save_weights
    from stable_audio_tools.models.checkpoints.formats import CONFIG_NAME
    from stable_audio_tools.models.pipeline_folders import is_pipeline, load_pipeline, write_pipeline
    from stable_audio_tools.models.pretrained import load_model

    output = arguments.output_dir
    if output.exists() and any(output.iterdir()):
        raise ConfigError(f"--output-dir: {output} is not empty; choose a new folder")
    if (arguments.from_pipeline is None) == (arguments.model_config is None and arguments.ckpt_path is None):
        raise ConfigError("give --from-pipeline, or --model-config with --ckpt-path")
    if arguments.from_pipeline is not None:
        if not is_pipeline(arguments.from_pipeline):
            raise ConfigError(f"--from-pipeline: {arguments.from_pipeline} holds no model_index.json")
        model, config = load_pipeline(arguments.from_pipeline)
        output.mkdir(parents=True, exist_ok=True)
        save(config, output / CONFIG_NAME)
        save_weights(model, output / "model.safetensors", model_config=config)
    else:
        if arguments.model_config is None or arguments.ckpt_path is None:
            raise ConfigError("--model-config, --ckpt-path: a pipeline is made of both")
        config = load(arguments.model_config)
        write_pipeline(load_model(config, arguments.ckpt_path), config, output)
    print(f"wrote {output}")
    return 0


main = command(parser, run)
