"""A small MTG-Jamendo, and a server of it on this machine that can be told to misbehave."""

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from stable_audio_tools.data import audio_io

TAGS = {
    214: ("genre---punkrock", "mood/theme---fast"),
    314: ("genre---ambient", "genre---newage", "instrument---piano", "speed---slow"),
    101: ("genre---rock",),
    201: ("genre---rock", "instrument---electricguitar"),
    301: ("mood/theme---film_score",),
    102: ("genre---jazz",),
}


@dataclass
class Faults:
    """What the server does wrong, for the next requests of files."""

    drop_after: list[int] = field(default_factory=list)  # bytes, then the connection is cut
    answers: list[int] = field(default_factory=list)  # status codes instead of files
    without_ranges: bool = False
    wrong_ranges: int = 0  # how many answers begin a byte too late
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # (path, Range) of every GET


@dataclass
class Mirror:
    url: str
    folder: Path
    faults: Faults


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of a mirror, and of the repository with the lists."""
    folder = tmp_path_factory.mktemp("published")
    scratch = tmp_path_factory.mktemp("tracks")
    tars, tracks, rows = [], [], ["TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS"]
    for place in sorted({number % 100 for number in TAGS}):
        path = folder / "raw_30s" / "audio" / f"raw_30s_audio-{place:02d}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            head = tarfile.TarInfo(f"{place:02d}")
            head.type = tarfile.DIRTYPE
            tar.addfile(head)
            for number in (n for n in TAGS if n % 100 == place):
                data = _mp3(scratch, number)
                name = f"{place:02d}/{number}.mp3"
                about = tarfile.TarInfo(name)
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))
                tracks.append(f"{sha256(data).hexdigest()} {name}")
                ids = f"track_{number:07d}\tartist_000014\talbum_000031"
                rows.append("\t".join([ids, name, "1.0", *TAGS[number]]))
        tars.append(f"{sha256(path.read_bytes()).hexdigest()} {path.name}")
    (folder / "download").mkdir()
    (folder / "download" / "raw_30s_audio_sha256_tars.txt").write_text("\n".join(tars) + "\n")
    (folder / "download" / "raw_30s_audio_sha256_tracks.txt").write_text("\n".join(tracks) + "\n")
    (folder / "raw_30s.tsv").write_text("\n".join(rows) + "\n")
    titles = [
        "TRACK_ID\tARTIST_ID\tALBUM_ID\tTRACK_NAME\tARTIST_NAME\tALBUM_NAME\tRELEASEDATE\tURL",
        *(
            f"track_{n:07d}\tartist_000014\talbum_000031\tTitle {n}\tThe Band\tFirst\t2007-03-{n % 28 + 1}\thttp://x"
            for n in TAGS
        ),
    ]
    (folder / "raw.meta.tsv").write_text("\n".join(titles) + "\n")
    (folder / "splits" / "split-0").mkdir(parents=True)
    rock = [rows[0], *(row for row in rows if "genre---rock" in row)]
    (folder / "splits" / "split-0" / "autotagging_genre-train.tsv").write_text("\n".join(rock) + "\n")
    return folder


def _mp3(scratch: Path, number: int) -> bytes:
    time = np.arange(22_050) / 22_050
    path = scratch / f"{number}.mp3"
    audio_io.write(path, 0.3 * np.sin(2 * np.pi * (100 + number) * time)[None].astype(np.float32), 22_050)
    return path.read_bytes()


@pytest.fixture
def mirror(published: Path) -> Iterator[Mirror]:
    faults = Faults()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            faults.asked.append((self.path, self.headers.get("Range")))
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            path = published / self.path.lstrip("/")
            if body and faults.answers:
                self.send_error(faults.answers.pop(0))
                return
            if not path.is_file():
                self.send_error(404)
                return
            data, tag = path.read_bytes(), f'"{sha256(path.read_bytes()).hexdigest()[:8]}"'
            given = self.headers.get("Range")
            start = int(given.removeprefix("bytes=").rstrip("-")) if given and not faults.without_ranges else 0
            start = start if self.headers.get("If-Range", tag) == tag else 0
            if start and start >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            if start and faults.wrong_ranges:
                faults.wrong_ranges, start = faults.wrong_ranges - 1, start + 1
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("ETag", tag)
            self.end_headers()
            if not body:
                return
            most = faults.drop_after.pop(0) if faults.drop_after else len(data)
            self.wfile.write(data[start : start + most])
            self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield Mirror(f"http://127.0.0.1:{server.server_address[1]}", published, faults)
    server.shutdown()
    thread.join()
    server.server_close()
