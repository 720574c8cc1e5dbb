"""What makes a run repeatable and stoppable: draws named by seed and epoch, own generators, and a Ctrl-C that waits."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

import topogen as tg

__all__ = ["Interrupt", "draws", "own_randomness"]

# What an epoch's draws belong to, below the seed; the numbers 0..99 are the core's. Part of every result: never change.
_EPOCH = 100


def draws(seed: int, epoch: int, n: int, steps: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the order of the images in an epoch and a seed for each of its steps, from seed and epoch alone."""
    rng = tg.stream(np.random.SeedSequence(seed), _EPOCH, epoch)
    return rng.permutation(n), rng.integers(2**62, size=steps)


@contextlib.contextmanager
def own_randomness(device: torch.device) -> Iterator[Callable[[int], None]]:
    """Yield a function that seeds torch's generators; on leaving they are as the caller left them."""
    cuda = [torch.cuda.default_generators[device.index or 0]] if device.type == "cuda" else []
    generators = [torch.default_generator, *cuda]

    def reseed(seed: int) -> None:  # torch.manual_seed would do it too, at a hundred times the cost
        for generator in generators:
            generator.manual_seed(seed)

    with torch.random.fork_rng(devices=[device] if cuda else []):
        yield reseed


class Interrupt:
    """The first Ctrl-C becomes a request, so that the running step is completed; the second one aborts at once."""

    def __init__(self, *, enabled: bool) -> None:
        self.requested = False
        # Python lets only the main thread handle signals; a process told to ignore Ctrl-C goes on ignoring it
        self._enabled = (
            enabled
            and threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
        )

    def __enter__(self) -> Interrupt:
        if self._enabled:
            self._previous = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        if self._enabled:
            signal.signal(signal.SIGINT, self._previous)

    def _request(self, *_: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
