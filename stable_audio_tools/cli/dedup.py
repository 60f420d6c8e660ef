"""`dedup`: find files of a dataset that contain the same recording."""

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
        f"{summary['failed_files']} could not be analysed\n"
        f"{summary['exclude_output']}: {summary['excluded_files']} files to exclude"
    )
    if summary["against"]:
        print(f"{summary['leaking_files']} files are in {summary['against']} too; see {summary['leaks_output']}")
    return 1 if outcome.leaks else 0


main = Command(
    DedupSettings,
    run,
    "Find files that contain the same recording, also if it is louder, inverted, resampled, encoded again, shifted or "
    "cut. Histograms of codec codes select candidates, an alignment of their frames confirms them, and one file of "
    "each group of copies is kept. Writes an exclusion list for training, the pairs and groups, and a page with "
    "players. An interrupted run resumes when started again. Under torchrun the processes share the analysis. Exit "
    "status 1 if the dataset and --against share a recording.",
)
