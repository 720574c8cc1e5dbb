"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Generator[BinaryIO]:
    """Open a binary file that takes the place of `path` when the block ends well, and leaves no trace otherwise.

    The bytes go to a temporary file in the same folder, are forced to the disk, and then take the name in one step.
    An exception, Ctrl-C or a full disk removes the temporary file; after kill -9 it may stay behind, under a name that
    starts with ``.topogen-``. In every case a file that was at `path` before stays as it was. A symbolic link is
    followed: the file that it points to is replaced.

    Parameters
    ----------
    path : str or path-like
        A file in an existing folder; it need not exist itself.

    Yields
    ------
    BinaryIO
        Writable and seekable; closed by this context.

    Raises
    ------
    OSError
        If `path` is a folder, or its folder is missing or cannot be written. Nothing has been written then.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from topogen.io import replacing
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "numbers"
    >>> with replacing(path) as file:
    ...     written = file.write(b"1 2 3")
    >>> path.read_bytes()
    b'1 2 3'
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    # made by open() and not by tempfile, so that the file has the permissions that the user's umask gives new files
    temporary = target.parent / f".topogen-{secrets.token_hex(8)}.tmp"
    try:
        file = temporary.open("xb")
    except OSError as error:  # of the same class, but about the file that the user named
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Force the new name to the disk, on systems where a folder can be opened; the content already is there."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
