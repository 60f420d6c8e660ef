"""`make-example-dataset`: short synthetic clips with captions."""

from dataclasses import dataclass
from pathlib import Path

from stable_audio_tools.cli.command import Command
from stable_audio_tools.core.settings import Settings, option


@dataclass(frozen=True)
class ExampleSettings(Settings):
    """Settings of `data example`."""

    folder: Path = option(Path("example/clips"), "where to write", positional=True, metavar="folder")
    per_class: int = option(6, "clips of each kind of sound", metavar="N", ge=1)
    seed: int = option(0, "random seed", metavar="SEED", ge=0)


def run(settings: ExampleSettings) -> int:
    from stable_audio_tools.data.example_clips import write_example_clips

    paths = write_example_clips(settings.folder, settings.per_class, settings.seed)
    print(f"wrote {len(paths)} clips to {settings.folder}")
    return 0


main = Command(
    ExampleSettings,
    run,
    "Write short synthetic clips of drums, bass, chords, rain and bells, with a caption beside each (.json) and a "
    "table of all (metadata.jsonl). The same arguments give the same files.",
)
