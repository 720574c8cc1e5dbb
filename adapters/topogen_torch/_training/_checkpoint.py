"""Checkpoints: written whole or not at all, and refused by a run that they do not belong to."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from topogen.errors import FormatError, SpecError
from topogen.io import replacing

__all__ = ["load_checkpoint", "save_checkpoint"]

_FORMAT = "topogen training checkpoint 2"


def save_checkpoint(path: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Write `state`, made of tensors, numbers, strings, lists and dicts, with what tells whose it is.

    Raises
    ------
    OSError
        If the file cannot be written; the checkpoint that was there before stays usable.
    """
    with replacing(path) as file:
        try:
            torch.save({"format": _FORMAT, "identity": identity, "state": state}, file)
        except RuntimeError as error:  # what torch's writer of zip archives makes of a full disk
            reason = str(error).splitlines()[0]
            raise OSError(f"The checkpoint {path} cannot be written (is the disk full?): {reason}") from error


def load_checkpoint(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Return the state of the checkpoint at `path`.

    Raises
    ------
    FormatError
        If the file is damaged or no checkpoint of topogen.
    SpecError
        If it was made with another `identity`; the sentence names the first entry that differs.
    """
    file = io.BytesIO(path.read_bytes())
    try:
        with zipfile.ZipFile(file) as archive:  # torch writes checksums and does not read them
            broken = archive.testzip()
        file.seek(0)
        content: Any = None if broken else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damage can surface as anything; that the file cannot be read was raised above
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise FormatError(f"The checkpoint {path} is damaged or foreign: {reason}") from None
    if broken:
        raise FormatError(f"The checkpoint {path} is damaged: its part '{broken}' does not match its checksum.")
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise FormatError(f"The checkpoint {path} must be a '{_FORMAT}', written by topogen.")
    made_with: dict[str, Any] = content["identity"]
    for name in (*identity, *made_with):
        if made_with.get(name) != identity.get(name):
            raise SpecError(
                f"The checkpoint {path} was made with {name} {made_with.get(name, '(none)')}; "
                f"it cannot be resumed with {identity.get(name, '(none)')}."
            )
    return content["state"]
