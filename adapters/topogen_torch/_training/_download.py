"""The download cache: files arrive through pooch and appear only after their checksum was right."""

from __future__ import annotations

import hashlib
import logging
import os
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from topogen.errors import FormatError

__all__ = ["Source", "downloaded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The files that a data set consists of, and how they are had.

    Attributes
    ----------
    files : dict
        File -> SHA-256.
    archive : tuple of str, optional
        (name, checksum as ``"algorithm:hex"``) of the tar archive that holds the files; None where each file is
        downloaded by itself.
    mirrors : tuple of str
        Addresses, tried in this order, that a file's name is appended to.
    """

    files: dict[str, str]
    archive: tuple[str, str] | None = None
    mirrors: tuple[str, ...]


def downloaded(name: str, source: Source, looked_in: Sequence[Path]) -> Path:
    """Return the cache's folder for the data set `name`, filled first where it is not.

    Parameters
    ----------
    name : str
        Name of the data set, and of its folder in the cache.
    source : Source
        What is downloaded; ``$TOPOGEN_MIRROR/<name>/`` replaces its mirrors.
    looked_in : sequence of Path
        The folders in which it was not found, for the error's sentence.

    Raises
    ------
    FormatError
        If a download has another checksum than it must have.
    FileNotFoundError
        If no mirror answers, or pooch is not installed.
    """
    places = ", ".join(map(str, looked_in)) or "data_dir or $TOPOGEN_DATA (neither is given)"
    try:
        import pooch
    except ImportError:
        raise FileNotFoundError(
            f"The data set '{name}' is not in {places}, and pooch, which downloads it, is not installed: "
            "pip install 'topogen-nn[torch]'."
        ) from None
    cache = Path(os.environ.get("TOPOGEN_CACHE") or pooch.os_cache("topogen")) / name
    override = os.environ.get("TOPOGEN_MIRROR")
    mirrors = (f"{override.rstrip('/')}/{name}/",) if override else source.mirrors
    try:
        if source.archive is None:
            for file, digest in source.files.items():
                _fetch(file, f"sha256:{digest}", mirrors, cache)
        elif not all((cache / file).exists() for file in source.files):  # they were verified when they were unpacked
            archive = _fetch(*source.archive, mirrors, cache)
            try:
                _unpack(archive, source.files)
            finally:
                archive.unlink()
    except _UnreachableError as error:
        raise FileNotFoundError(
            f"The data set '{name}' is not in {places} and cannot be downloaded to {cache}: {error}."
        ) from None
    return cache


class _UnreachableError(Exception):
    """No mirror has answered."""


def _fetch(file: str, checksum: str, mirrors: Sequence[str], cache: Path) -> Path:
    """Return the cached file, downloaded from the first mirror that answers unless it is there with this checksum."""
    import pooch
    from requests import RequestException  # pooch stands on requests

    pooch.get_logger().setLevel(logging.WARNING)  # it announces every file twice
    if not (cache / file).exists():
        logging.getLogger("topogen").warning("Downloading %s from %s to %s.", file, mirrors[0], cache)
    failures: list[str] = []
    for mirror in mirrors:
        try:
            return Path(pooch.retrieve(mirror + file, checksum, file, cache))
        except RequestException as error:
            failures.append(f"{mirror}{file} ({type(error).__name__})")
        except ValueError:  # a wrong checksum: pooch has removed the file
            raise FormatError(
                f"{mirror}{file} must have the checksum {checksum}; it has another, and was not kept."
            ) from None
    raise _UnreachableError(f"no answer from {', '.join(failures)}")


def _unpack(archive: Path, files: dict[str, str]) -> None:
    """Write the archive's files of these names beside it, all of them verified before the first one appears.

    Only contents are taken from the archive, never paths, links or permissions, so nothing is written elsewhere.
    """
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name, file = Path(member.name).name, tar.extractfile(member) if member.isfile() else None
                if file is not None and name in files:
                    contents[name] = file.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise FormatError(f"{archive} is damaged: {error}; nothing of it was kept.") from None
    for name, digest in files.items():
        if hashlib.sha256(contents.get(name, b"")).hexdigest() != digest:
            raise FormatError(f"{archive} must hold '{name}' with the SHA-256 {digest}; nothing of it was kept.")
    for name, content in contents.items():
        part = archive.with_name(f"{name}.part")
        part.write_bytes(content)
        part.replace(archive.with_name(name))
