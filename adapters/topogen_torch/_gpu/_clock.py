"""Seconds that work on a card takes, by the card's own clock."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

__all__ = ["captures_are_sound", "graphed", "median_seconds", "seconds_of"]

Call = Callable[[], Any]

_broken: list[str] = []  # why captures failed in this process


def seconds_of(call: Call, number: int, device: torch.device) -> float:
    """Return the seconds of one of `number` calls in a row.

    On a CUDA device between two events on the current stream, so that neither the host's clock nor its waiting counts;
    elsewhere by the host's clock.
    """
    if device.type != "cuda":
        start = perf_counter()
        for _ in range(number):
            call()
        return (perf_counter() - start) / number
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(number):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / number


def median_seconds(call: Call, device: torch.device, *, budget: float = 0.05, least: int = 5) -> float:
    """Return the median over laps that take `budget` seconds together, after two calls that are not counted."""
    call()
    once = seconds_of(call, 1, device)
    number = max(1, round(budget / 10 / max(once, 1e-7)))
    laps = max(least, min(25, round(budget / max(number * once, 1e-7))))
    return statistics.median(seconds_of(call, number, device) for _ in range(laps))


def graphed(call: Call, device: torch.device) -> Call | None:
    """Return a call that replays what `call` launches, as one CUDA graph; None where it cannot be captured.

    A replay has no launch gaps, so that small layers are measured and not Python.
    """
    if device.type != "cuda":
        return None
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # on which the operands were made
    try:
        with torch.cuda.stream(stream):
            for _ in range(3):  # compiles and allocates
                call()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            call()
    except RuntimeError as error:  # something in it waits for the device
        _broken.append(str(error))
        torch.cuda.synchronize(device)
        return None
    return graph.replay


def captures_are_sound() -> bool:
    """Whether no capture has failed in this process: torch's memory and random numbers may take it for unfinished."""
    return not _broken
