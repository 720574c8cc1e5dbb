"""A convolution's window, which plain Python can read: no kernel is loaded for it."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Window"]


class Window(NamedTuple):
    """The kernel's size and how it moves, each for (rows, columns); `padding` counts zeros before and after."""

    size: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, bottom, left, right
    dilation: tuple[int, int] = (1, 1)

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width of the result; not positive where the kernel does not fit in."""
        top, bottom, left, right = self.padding
        return (
            (height + top + bottom - self.dilation[0] * (self.size[0] - 1) - 1) // self.stride[0] + 1,
            (width + left + right - self.dilation[1] * (self.size[1] - 1) - 1) // self.stride[1] + 1,
        )
