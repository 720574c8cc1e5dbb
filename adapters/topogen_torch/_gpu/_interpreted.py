"""The kernels of a card for tensors on the CPU: in a process that runs Triton's interpreter."""

from __future__ import annotations

import warnings

import torch

from topogen.errors import SpecError
from topogen_torch._gpu import _choose, _connections

__all__ = ["take_cpu_as_card"]

_taken: list[torch.library.Library] = []


def take_cpu_as_card() -> None:
    """From now on treat the CPU as a card: layers made later are computed by the card's kernels, interpreted.

    For the rest of the process, whose environment has ``TRITON_INTERPRET=1``. Meant for tests and for trying the
    benchmark's every line without a card: the interpreter is thousands of times slower than anything.

    Raises
    ------
    SpecError
        If Triton would compile.
    """
    from topogen_torch._gpu._launch import is_interpreted

    if not is_interpreted():
        raise SpecError("The kernels of a card run on the CPU in Triton's interpreter alone: set TRITON_INTERPRET=1.")
    if _taken:
        return
    library = torch.library.Library("topogen", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that another kernel stood there before
        for name, function in (
            ("sparse_linear", _connections.forward),
            ("crowded_linear", _connections.crowded_forward),
            ("sparse_linear_backward", _connections.backward),
        ):
            library.impl(name, function, "CPU", allow_override=True)
    _taken.append(library)  # what it registers lives as long as it does
    _choose._cards.add("cpu")
