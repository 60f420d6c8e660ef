"""`data download`: audio and tables of MTG-Jamendo."""

from stable_audio_tools.cli.command import Command
from stable_audio_tools.data.jamendo.settings import DownloadSettings


def run(settings: DownloadSettings) -> None:
    from stable_audio_tools.core.progress import progress_bar
    from stable_audio_tools.data.jamendo.download import download

    with progress_bar("downloading", 1.0) as show:
        done = download(settings, lambda got, total: show(got / total if total else 0))
    print(f"{settings.audio_dir}: {done.fetched} tracks fetched from {done.tars} tars, {done.kept} were there")


main = Command(
    DownloadSettings,
    run,
    "Download tracks of MTG-Jamendo (full tracks in 320 kbit/s mp3, 508 GB in all) and unpack them. Everything is "
    "checked against the published SHA-256 sums. A run that was killed, or whose connection failed, goes on where "
    "it was when started again; a larger --target adds to what is there. The licence of each track is that of "
    "jamendo.com (Creative Commons, not all for commercial use).",
)
