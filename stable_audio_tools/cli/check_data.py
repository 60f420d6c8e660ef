"""`check-data`: what is wrong with a dataset, before hours are spent on it."""

import json
from dataclasses import dataclass
from pathlib import Path

from stable_audio_tools.cli.command import Command
from stable_audio_tools.core.settings import Settings, option


@dataclass(frozen=True)
class CheckDataSettings(Settings):
    """Settings of `data check`."""

    dataset: Path = option(help="dataset config", positional=True, metavar="DATASET.json")
    against: Path | None = option(
        None, "another split, such as validation, that must share no audio with it", metavar="JSON"
    )
    model_config: Path | None = option(None, "report files below the sample rate of this model", metavar="JSON")
    quarantine: Path | None = option(None, "write a list of useless files, to leave them out", metavar="FILE")
    num_workers: int | None = option(None, "files to decode at once; one for each CPU if left out", metavar="N", ge=1)
    json: bool = option(False, "print the report as JSON")


def run(settings: CheckDataSettings) -> int:
    from stable_audio_tools.core.config import load
    from stable_audio_tools.core.progress import progress_bar
    from stable_audio_tools.data.checks import check_dataset, table

    rate = load(settings.model_config).get("sample_rate") if settings.model_config else None
    with progress_bar("decoding", None) as show:
        report = check_dataset(
            load(settings.dataset),
            against=load(settings.against) if settings.against else None,
            sample_rate=rate,
            workers=settings.num_workers,
            progress=show,
        )
    print(json.dumps(report.as_dict(), indent=2) if settings.json else table(report))
    if settings.quarantine is not None:
        count = report.write_quarantine(settings.quarantine)
        if not settings.json:
            print(f"wrote {settings.quarantine}: {count} files; name it as quarantine_file in the dataset config")
    return 0 if report.ok else 1


main = Command(
    CheckDataSettings,
    run,
    "Decode every file of a dataset and report what is wrong: unreadable, silent, clipped or short files, odd rates "
    "and channels, missing captions, exact duplicates. Exit status 1 when something is.",
)
