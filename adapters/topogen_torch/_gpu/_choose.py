"""Which kernel computes a layer on which card: a pure function, so that it can be looked at without any card.

Blocks go to Triton: those of a RadiX layer to the kernel that knows where they are, all others to the one with an
index. The last radix of a system, where its matrices are large, is a batch of dense products. Single connections go to
cuSPARSE. What has no kernel, and what is denser than its break-even, is multiplied densely by cuBLAS from the same
values; the first of these is said aloud.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from importlib.util import find_spec
from typing import Literal, NamedTuple

import torch

from topogen.errors import SpecError

__all__ = [
    "BLOCKS", "BREAK_EVEN", "CIRCULANT_BREAK_EVEN", "Choice", "Kernel", "Kind", "announce", "choose", "choose_for",
    "has_triton", "on_card", "refuse_without_card",
]  # fmt: skip

Kind = Literal["blocks", "circulant", "batched", "connections"]
Kernel = Literal["cpu", "triton", "circulant", "batched", "cusparse", "dense"]

BLOCKS = (16, 32, 64, 128)
"""Block sizes that have a kernel."""

BREAK_EVEN = {1: 0.1, 16: 0.12, 32: 0.23, 64: 0.42, 128: 0.7}
"""Density, by block, above which a layer multiplies densely on a card; 1 stands for single connections.

Not measured: the share of the dense rate that traffic through L2 leaves to random blocks, by arithmetic for an H200
(an operand read from L2 serves as many products as the block is wide). For connections, the order of what is published
of cuSPARSE beside cuBLAS in float32.
"""

CIRCULANT_BREAK_EVEN = 0.45
"""The same for RadiX layers of any block: neighbouring outputs share inputs. Not measured either."""

_LEAST = (8, 0)
_IN_BLOCKS = (torch.float32, torch.float16, torch.bfloat16)

_cards = {"cuda"}  # a process that runs Triton's interpreter adds "cpu": `topogen_torch._gpu._interpreted`
_announced: set[tuple[str, str]] = set()


class Choice(NamedTuple):
    """A kernel, and why it is not the one that was made for the pattern; nothing where it is."""

    kernel: Kernel
    reason: str = ""


def on_card(device: torch.device) -> bool:
    """Whether tensors there are multiplied by the kernels of a card."""
    return device.type in _cards


def choose(
    device: str,
    capability: tuple[int, int] | None,
    kind: Kind,
    block: int,
    dtype: torch.dtype,
    *,
    triton: bool,
    density: float = 0.0,
) -> Choice:
    """Return the kernel of one layer.

    Parameters
    ----------
    device : str
        Its type: ``"cuda"``, ``"cpu"``, ...
    capability : pair of ints, or None
        The card's compute capability; None for Triton's interpreter, which has none.
    kind : {"blocks", "circulant", "batched", "connections"}
        Blocks anywhere; blocks placed as in a RadiX layer; in one that is a batch of large dense matrices but for the
        order of its neurons; or single connections.
    block : int
        Neurons on one side of a block; 1 for connections.
    dtype : torch.dtype
        Of the values, after autocast.
    triton : bool
        Whether Triton can be imported.
    density : float
        Stored connections / possible connections. The default is below every break-even.

    Returns
    -------
    Choice
        ``dense`` with a reason where no kernel exists, without one above the break-even density.
    """
    if device in ("cpu", "meta"):
        return Choice("cpu")
    if device != "cuda":
        return Choice("dense", f"there is no kernel for device '{device}', only for 'cpu' and 'cuda'")
    if kind == "connections":
        return Choice("dense" if density > BREAK_EVEN[1] else "cusparse")
    if kind == "batched":
        return Choice("batched")
    if dtype not in _IN_BLOCKS:
        return Choice("dense", f"blocks of {dtype} have no kernel there; float32, float16 and bfloat16 have")
    if block not in BLOCKS:
        nearest = min(BLOCKS, key=lambda size: abs(size - block))
        return Choice("dense", f"blocks of {block} have no kernel there; 16, 32, 64 and 128 have, {nearest} nearest")
    if capability is not None and capability < _LEAST:
        have, need = ".".join(map(str, capability)), ".".join(map(str, _LEAST))
        return Choice("dense", f"its compute capability is {have} and the kernels need {need} (Ampere) or newer")
    if not triton:
        return Choice("dense", "Triton is not installed; 'pip install triton' brings the kernels")
    if density > (CIRCULANT_BREAK_EVEN if kind == "circulant" else BREAK_EVEN[block]):
        return Choice("dense")
    return Choice("circulant" if kind == "circulant" else "triton")


def choose_for(device: torch.device, kind: Kind, block: int, dtype: torch.dtype, density: float) -> Choice:
    """Return what `choose` does for the card that `device` is."""
    if not on_card(device):
        return choose(device.type, None, kind, block, dtype, triton=has_triton(), density=density)
    capability = _capability(device) if device.type == "cuda" else None
    return choose("cuda", capability, kind, block, dtype, triton=has_triton(), density=density)


def refuse_without_card(option: str, owner: str, name: str = "cuda") -> torch.device:
    """Return the CUDA device of a name; refuse in one sentence where there is none, or none that has the kernels."""
    if not torch.cuda.is_available():
        raise SpecError(f"The '{option}' option of {owner} needs a CUDA device, and PyTorch finds none here.")
    device = torch.device(name)
    if device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    elif device.index >= torch.cuda.device_count():
        raise SpecError(
            f"The '{option}' option of {owner} needs a CUDA device below {torch.cuda.device_count()}. Got {name}."
        )
    reason = choose_for(device, "blocks", 64, torch.bfloat16, 0.0).reason
    if reason:
        raise SpecError(f"The '{option}' option of {owner} needs a card that has the kernels, but {reason}.")
    return device


def announce(owner: str, reason: str, n_in: int, n_out: int, itemsize: int) -> None:
    """Warn, once for each kind of layer and reason, that it is dense on the card and what that costs."""
    if not reason or (owner, reason) in _announced:
        return
    _announced.add((owner, reason))
    warnings.warn(
        f"{owner} multiplies densely on this card, because {reason}: every call builds the {n_in} x {n_out} matrix, "
        f"{n_in * n_out * itemsize:,} bytes, and saves no time.",
        UserWarning,
        stacklevel=4,
    )


@lru_cache(maxsize=1)
def has_triton() -> bool:
    return find_spec("triton") is not None


@lru_cache(maxsize=64)
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
