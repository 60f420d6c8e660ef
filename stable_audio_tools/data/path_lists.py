"""Lists of paths to exclude or include: exact by default, with a warning for entries that match no file."""

import logging
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from stable_audio_tools.core.errors import ConfigError

logger = logging.getLogger(__name__)


def read_path_list(path: str | Path) -> list[str]:
    """Return one path per line; blank lines, lines starting with `#`, and text after a tab and `#` are ignored."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: the list of paths cannot be read ({error.strerror})") from None
    entries = (line.split("\t#")[0].strip() for line in lines)
    return [entry for entry in entries if entry and not entry.startswith("#")]


class PathList:
    """A list whose entries match a file by absolute path, path below its dataset's root, or `id:` and that path.

    With `loose`, an entry also matches by the file's name, or by either without its extension.
    """

    def __init__(self, path: str | Path, loose: bool = False) -> None:
        self.path, self.loose = str(path), loose
        self.entries = {self._normal(entry): entry for entry in read_path_list(path)}
        self.hits: Counter[str] = Counter()

    @staticmethod
    def _normal(entry: str) -> str:
        return os.path.normpath(entry).replace("\\", "/")

    def fits(self, path: str, relpath: str | None = None, id: str = "") -> bool:
        """Return whether this file is on the list."""
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
        """Warn about entries that matched no file, or several."""
        unused = [entry for key, entry in self.entries.items() if not self.hits[key]]
        several = [entry for key, entry in self.entries.items() if self.hits[key] > 1]
        if unused:
            remedy = "" if self.loose else "; paths must be complete (set loose_path_matching to match by file name)"
            logger.warning("%s: %d entries match no file, such as %r%s", self.path, len(unused), unused[0], remedy)
        if several:
            logger.warning("%s: %d entries match several files, such as %r", self.path, len(several), several[0])


class PathFilter:
    """The selection by the keys `exclude_paths_file`, `include_paths_file` and `quarantine_file`."""

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
        """Return whether the file with these names (path, path below its root) is used."""
        return self.reason(names, id) is None

    def reason(self, names: Iterable[tuple[str, str | None]], id: str = "") -> str | None:
        """Return the key of the list that leaves a file out; None if it is used."""
        known = list(names)

        def on(chosen: PathList | None) -> bool:
            fits = [chosen.fits(path, relpath, id) for path, relpath in known] if chosen else []
            return any(fits)

        hits = {  # every list is asked, so that each counts its entries
            "include_paths_file": self.include is not None and not on(self.include),
            "exclude_paths_file": on(self.exclude),
            "quarantine_file": on(self.quarantine),
        }
        return next((key for key, is_hit in hits.items() if is_hit), None)

    def report(self) -> None:
        """Warn about entries that matched no file or several."""
        for chosen in (self.exclude, self.include):
            if chosen:
                chosen.report()
