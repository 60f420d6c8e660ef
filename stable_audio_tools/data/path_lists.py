"""Lists of paths to leave out or to keep: exact by default, and never silent about an entry that fits nothing."""

import logging
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from stable_audio_tools.core.errors import ConfigError

logger = logging.getLogger(__name__)


def read_path_list(path: str | Path) -> list[str]:
    """One path a line; blank lines, lines beginning with `#`, and what follows a tab and `#` are left out."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: the list of paths cannot be read ({error.strerror})") from None
    entries = (line.split("\t#")[0].strip() for line in lines)
    return [entry for entry in entries if entry and not entry.startswith("#")]


class PathList:
    """Entries fit a file by its absolute path, its path below its dataset's root, or `id:` and that path.

    With `loose`, an entry also fits by the file's name, or by either with its extension left out.
    """

    def __init__(self, path: str | Path, loose: bool = False) -> None:
        self.path, self.loose = str(path), loose
        self.entries = {self._normal(entry): entry for entry in read_path_list(path)}
        self.hits: Counter[str] = Counter()

    @staticmethod
    def _normal(entry: str) -> str:
        return os.path.normpath(entry).replace("\\", "/")

    def fits(self, path: str, relpath: str | None = None, id: str = "") -> bool:
        """Is this file on the list?"""
        hits = [self._hit(candidate) for candidate in self._candidates(path, relpath, id)]
        return any(hits)

    def _hit(self, candidate: str) -> bool:
        found = candidate in self.entries
        self.hits[candidate] += found
        return found

    def _candidates(self, path: str, relpath: str | None, id: str) -> set[str]:
        whole = {self._normal(str(Path(path).absolute())), self._normal(path)}
        if relpath is not None:
            whole |= {self._normal(relpath), f"{id}:{self._normal(relpath)}"}
        if self.loose:
            whole |= {Path(path).name}
            whole |= {str(PurePosixPath(candidate).with_suffix("")) for candidate in whole}
        return whole

    def report(self) -> None:
        """Warn of entries that fitted no file, or more than one."""
        unused = [entry for key, entry in self.entries.items() if not self.hits[key]]
        several = [entry for key, entry in self.entries.items() if self.hits[key] > 1]
        if unused:
            remedy = "" if self.loose else "; paths must be whole (set loose_path_matching to match by file name)"
            logger.warning("%s: %d entries fit no file, such as %r%s", self.path, len(unused), unused[0], remedy)
        if several:
            logger.warning("%s: %d entries fit several files, such as %r", self.path, len(several), several[0])


class PathFilter:
    """What the keys `exclude_paths_file`, `include_paths_file` and `quarantine_file` leave."""

    def __init__(
        self,
        exclude: str | Path | None = None,
        include: str | Path | None = None,
        quarantine: str | Path | None = None,
        loose: bool = False,
    ) -> None:
        self.exclude = PathList(exclude, loose) if exclude else None
        self.include = PathList(include, loose) if include else None
        self.quarantine = PathList(quarantine) if quarantine and Path(quarantine).exists() else None

    def __bool__(self) -> bool:
        return any((self.exclude, self.include, self.quarantine))

    def keeps(self, names: Iterable[tuple[str, str | None]], id: str = "") -> bool:
        """Is the file that goes by these (path, path below its root) to be used?"""
        known = list(names)

        def on(chosen: PathList | None) -> bool:
            fits = [chosen.fits(path, relpath, id) for path, relpath in known] if chosen else []
            return any(fits)

        left_out = [on(self.exclude), on(self.quarantine)]
        return (self.include is None or on(self.include)) and not any(left_out)

    def report(self) -> None:
        """Warn of entries that fitted nothing or too much."""
        for chosen in (self.exclude, self.include):
            if chosen:
                chosen.report()
