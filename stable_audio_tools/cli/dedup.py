"""`dedup`: which files of a dataset hold the same recording."""

from stable_audio_tools.cli.command import Command
from stable_audio_tools.dedup.settings import DedupSettings


def run(settings: DedupSettings) -> int:
    from stable_audio_tools.dedup.run import deduplicate

    outcome = deduplicate(settings)
    if outcome is None:
        return 0
    for row in outcome.sweep:
        print(", ".join(f"{key.replace('_', ' ')} {value}" for key, value in row.items()))
    summary = outcome.summary
    print(
        f"{summary['encoded_files']} files: {summary['duplicate_files']} copies in {summary['clusters']} groups, "
        f"{summary['failed_files']} could not be heard\n"
        f"{summary['exclude_output']}: {summary['excluded_files']} files to leave out"
    )
    if summary["against"]:
        print(f"{summary['leaking_files']} files are in {summary['against']} too; see {summary['leaks_output']}")
    return 1 if outcome.leaks else 0


main = Command(
    DedupSettings,
    run,
    "Find files that hold the same recording, also louder, inverted, resampled, encoded again, shifted or cut. "
    "Histograms of codec codes name candidates, a second look lays their frames over each other, and of each group "
    "of copies one file is kept. Writes a list that training leaves out, what is like what, and a page to listen "
    "to. A run that was killed goes on when started again. Under torchrun the processes share the listening. Exit "
    "status 1 when files of --against turn up in the dataset.",
)
