"""The one way to write a file: whole, or not at all."""

import contextlib
import errno
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MARK = ".unfinished"

# what NumPy raises on an archive of arrays that is damaged; RuntimeError of one whose flags or
# methods of compression zipfile does not know
DAMAGED = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


@contextlib.contextmanager
def whole(path: str | os.PathLike[str], mode: str = "wb", **options: Any) -> Iterator[Any]:
    """An open file that takes the place of ``path`` when the block ends without an exception.

    Until then it lies beside ``path`` under another name, where no reader looks; when the block
    raises (a full disk, Ctrl-C) it is removed, and what was at ``path`` before is still there. Two
    processes that write the same path do not meet: the last to end wins. ``mode`` is "wb" or "w"
    (then UTF-8, newlines as given); missing folders are made.

    Raises OSError as :func:`open` does.
    """
    path = Path(path)
    _refuse_folder(path)  # now: what replaces a file cannot replace a folder
    path.parent.mkdir(parents=True, exist_ok=True)
    if "b" not in mode:
        options = {"encoding": "utf-8", "newline": "", **options}
    # mkstemp for a name nobody else has; its permissions, the owner's alone, are corrected below
    handle, temporary = _beside(path)
    try:
        with open(handle, mode, **options) as file:
            yield file
            file.flush()
            # a disk that is full may say so only now, and a crash after the rename must find bytes
            os.fsync(file.fileno())
        os.chmod(temporary, _permissions(path))
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def write(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Write ``content`` to ``path`` as :func:`whole` does."""
    with whole(path, "w" if isinstance(content, str) else "wb") as file:
        file.write(content)


def probe(path: str | os.PathLike[str]) -> None:
    """Raise now the OSError that writing ``path`` would raise later; nothing is left behind.

    The folder must be there: a long run should not learn at its end that a name was mistyped.
    """
    path = Path(path)
    _refuse_folder(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(path.parent))
    handle, temporary = _beside(path)
    os.close(handle)
    os.unlink(temporary)
    _permissions(path)  # a name that is too long, which the one beside it is not


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(
            errno.EISDIR, "this is a folder, a file's path is needed", str(path)
        )


def _beside(path: Path) -> tuple[int, str]:
    """A file of its own in the folder of ``path``, whose name has room for what is added to it."""
    shown = path.name.encode()[:100].decode(errors="ignore")
    return tempfile.mkstemp(prefix=f".{shown}.", suffix=_MARK, dir=path.parent)


def _permissions(path: Path) -> int:
    """Those of the file that is replaced, else what the process gives to new files."""
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask
