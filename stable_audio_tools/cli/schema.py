"""`schema`: JSON Schemas of the config files, for editors."""

import json
from dataclasses import dataclass
from pathlib import Path

from stable_audio_tools.cli.command import Command
from stable_audio_tools.core.settings import Settings, option


@dataclass(frozen=True)
class SchemaSettings(Settings):
    """Settings of `schema`."""

    out: Path | None = option(None, "folder to write to; without it, both are printed", metavar="DIR")


def run(settings: SchemaSettings) -> int:
    from stable_audio_tools.core.config.schema import body_of, flat_schema, tagged_schema
    from stable_audio_tools.core.files import write_text
    from stable_audio_tools.models.factory import ModelFile
    from stable_audio_tools.training.section_schema import training_body

    schemas = {
        "model": tagged_schema(
            ModelFile, "model_type", "model", {"model": body_of("model"), "training": training_body}
        ),
        "dataset": flat_schema("Dataset config", "dataset", "dataset_type"),
    }
    if settings.out is None:
        print(json.dumps(schemas, indent=2))
        return 0
    for name, schema in schemas.items():
        path = settings.out / f"{name}.schema.json"
        write_text(path, json.dumps(schema, indent=2) + "\n")
        print(f"wrote {path}")
    return 0


main = Command(
    SchemaSettings,
    run,
    'Write model.schema.json and dataset.schema.json. Point an editor at one with a "$schema" key at the top of a '
    "config: it then completes keys and underlines mistakes.",
)
