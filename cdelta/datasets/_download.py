"""Files fetched with a checksum: resumed where they stopped, by one process at a time."""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from cdelta import _files
from cdelta._extras import optional

try:
    import fcntl
except ImportError:  # Windows: two processes at once are not kept apart there
    fcntl = None

TIMEOUT = 30.0  # seconds without a byte before the next mirror is tried


def fetch(name: str, sha256: str, folder: Path, mirrors: Sequence[str]) -> Path:
    """The file ``name`` in ``folder``, fetched from the first of ``mirrors`` whose copy has the
    checksum.

    What has arrived is kept in ``NAME.part``, and an interrupted download goes on from there; where
    what was kept does not fit, the mirror is asked once more from nothing before it is blamed.
    While one process fetches the file, others wait for it.

    Raises OSError naming what each mirror answered when none delivers.
    """
    path, failures = folder / name, []
    if _right(path, sha256):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder / f"{name}.part") as part:
        if _right(path, sha256):  # fetched by the process that this one has waited for
            return path
        for mirror in mirrors:
            try:
                resumed = _receive(mirror + name, part)
                if resumed and _sha256(part) != sha256:
                    part.truncate(0)
                    _receive(mirror + name, part)
            except OSError as error:  # requests' exceptions are OSErrors
                failures.append(f"{mirror}: {type(error).__name__}: {error}")
                continue
            if _sha256(part) == sha256:
                part.seek(0)
                _files.write(path, part.read())
                part.truncate(0)
                return path
            part.truncate(0)
            failures.append(
                f"{mirror}: checksum failure, what it sent is not the published {name} "
                f"(SHA-256 {sha256})"
            )
    raise OSError(
        f"no mirror delivered {name} into {folder}:\n  "
        + "\n  ".join(failures or ["no mirror was given"])
    )


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[BinaryIO]:
    """``path``, open to be read and appended to by one thread of one process: others wait here.

    What the block leaves in it stays for the next one; an empty file is removed.
    """
    try:
        with open(path, "a+b") as file:
            # of the open file, so that the system takes it from whoever dies
            if fcntl is not None:
                # some network file systems keep no locks: there the checksum alone must do
                with contextlib.suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX)
            yield file
    finally:
        # Another may have opened it by now: that one reads and writes what it has open, under
        # whatever name, and can only not be resumed. Or another has removed it.
        with contextlib.suppress(FileNotFoundError):
            if not path.stat().st_size:
                path.unlink()


def _receive(url: str, part: BinaryIO) -> bool:
    """Append to ``part`` what it lacks of ``url``; whether it holds bytes from before this call."""
    from tqdm import tqdm

    requests = optional("requests")
    start = part.seek(0, os.SEEK_END)
    ask = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with requests.get(url, headers=ask, stream=True, timeout=TIMEOUT) as answer:
        if start and answer.status_code == 416:  # nothing is left: whole already, or another file
            return True
        answer.raise_for_status()
        resumes = answer.status_code == 206
        if resumes and not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            return True  # another range than was asked for: of no use
        if not resumes:  # the server sends all of it
            part.truncate(0)
            start = 0
        total = start + int(answer.headers.get("Content-Length", 0)) or None
        name = url.rsplit("/", 1)[-1]
        with tqdm(total=total, initial=start, desc=name, unit="B", unit_scale=True) as progress:
            for chunk in answer.iter_content(1 << 12):
                part.write(chunk)
                progress.update(len(chunk))
    return resumes


def _right(path: Path, sha256: str) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return _sha256(file) == sha256


def _sha256(file: BinaryIO) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()
