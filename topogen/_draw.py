"""Pictures of a topology: its layer patterns side by side, or the layered graph."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from topogen import checks
from topogen._claims import shown
from topogen._topology import Topology, as_topology
from topogen.errors import SpecError
from topogen.io import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw"]

# lengths are inches, sizes of letters and of dots are points (1/72 inch)
_DPI = 150
_MAX_PANELS = 120
_MAX_COLUMNS = 30
_MAX_LINES = 4000
_DARK, _MIDDLE, _DOT = "#08306b", "#6baed6", "#c2410c"
_HEAD, _FOOT = 11.0, 8.0
_LINE = 1.35 / 72  # height of a line of text, for each point of its size

_Ints = npt.NDArray[np.int64]


def draw(net: Any, path: str | os.PathLike[str] | None = None, *, kind: str = "spy") -> Figure:
    """Draw a topology.

    Parameters
    ----------
    net : Topology, sequence of matrices, or one matrix
        What to draw; layers are read one at a time.
    path : str or path-like, optional
        Where to write the picture; must end in ``.png`` or ``.svg``. An existing file is replaced in one step.
    kind : {"spy", "layered"}
        "spy": one panel a layer, rows = inputs from the top, columns = outputs from the left. Where a layer has more
        neurons than its panel has pixels, a pixel's shade is the share of the connections under it that exist. Of more
        than 120 layers the first 120 are drawn, and the title says so.
        "layered": one column of neurons for each layer of nodes, neuron 0 at the top, a line for each connection. Of
        more than 4000 connections about 4000 are drawn, the same random ones each time, and the title says so.
        Relays are hollow. The title of either kind says how many there are, and a panel's how many of its outputs are.

    Returns
    -------
    matplotlib.figure.Figure
        Belongs to no pyplot window and needs no display.

    Raises
    ------
    SpecError
        If `net` is no topology, `kind` or the suffix is unknown, or "layered" is asked for more than 30 layers.
    OSError
        If the file cannot be written.

    Examples
    --------
    >>> import topogen as tg
    >>> figure = tg.draw(tg.generate(tg.RadixNet(systems=[[2, 2, 2]])))
    >>> len(figure.axes)
    3
    """
    topology = as_topology(net, name="net")
    kind = checks.one_of(kind, "kind", "draw", ("spy", "layered"))
    target = None if path is None else _picture_path(path)
    figure: Any = _spy(topology) if kind == "spy" else _layered(topology)  # matplotlib's types have gaps
    if target is not None:
        from matplotlib import rc_context  # pyright: ignore[reportUnknownVariableType]

        suffix = target.suffix[1:]
        with replacing(target) as file, rc_context({"svg.hashsalt": "topogen"}):  # equal pictures are equal bytes
            figure.savefig(file, format=suffix, metadata={"Date": None} if suffix == "svg" else None)
    return figure


def _picture_path(path: Any) -> Path:
    text = os.fspath(cast("os.PathLike[str]", path)) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str) or Path(text).suffix not in (".png", ".svg"):
        checks.refuse("path", "draw", "a path that ends in '.png' or '.svg'", text)
    return Path(text)


# ---- words


def _name(topology: Topology) -> str:
    name = "Topology" if topology.spec is None else type(topology.spec).__name__
    sizes, depth = topology.sizes, len(topology)
    if depth > 1 and len(set(sizes)) == 1:
        return f"{name}: {depth} layers of {sizes[0]} × {sizes[0]}"
    return f"{name}: sizes {shown(sizes)}"


def _counts(connections: int, shapes: Sequence[tuple[int, int]], relays: int) -> str:
    possible = sum(n_in * n_out for n_in, n_out in shapes)
    text = f"{connections:,} connection{'s' if connections != 1 else ''}, density {connections / possible:.3g}"
    return f"{text}, {relays:,} relay{'s' if relays != 1 else ''}" if relays else text


def _n_relays(topology: Topology) -> int:
    return sum(row.size for row in topology.relays)


def _wrapped(text: str, width: float, size: float) -> list[str]:
    """Break `text` into lines that fit into `width`; a letter is about 0.58 of its size wide."""
    return textwrap.wrap(text, max(20, int(width * 72 / (0.58 * size))))


def _write(figure: Any, lines: Sequence[str], size: float, top: float) -> None:
    """Write centred lines, the first one `top` below the upper edge."""
    height = figure.get_size_inches()[1]
    figure.text(0.5, 1 - top / height, "\n".join(lines), ha="center", va="top", fontsize=size, linespacing=1.2)


# ---- one panel a layer


class _Style(NamedTuple):
    """What a number of panels leaves room for."""

    side: float  # of a square panel
    columns: int
    letters: float  # size of a panel's caption
    words: bool  # whether captions have words, or bare numbers explained in a note


class _Panel(NamedTuple):
    """Where a layer is drawn, from the upper left corner."""

    left: float
    top: float
    width: float
    height: float


def _spy(topology: Topology) -> Figure:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    depth = min(len(topology), _MAX_PANELS)
    shapes = list(zip(topology.sizes[:depth], topology.sizes[1:], strict=False))
    style = _style(depth)
    panels, width, bottom = _arrange(shapes, style)
    head, notes = _wrapped(_name(topology), width - 0.4, _HEAD), _notes(shapes, panels, style, width)
    shift = 0.25 + (len(head) + 1) * _HEAD * _LINE  # the last line of the head follows when all layers were read
    height = shift + bottom + len(notes) * _FOOT * _LINE + 0.12
    figure: Any = Figure(figsize=(width, height), dpi=_DPI)
    colours = LinearSegmentedColormap.from_list("topogen", ["white", _MIDDLE, _DARK])
    connections = 0
    for k, panel in enumerate(panels):
        layer = topology[k]
        connections += layer.nnz
        low = 1 - (shift + panel.top + panel.height) / height
        axes = figure.add_axes((panel.left / width, low, panel.width / width, panel.height / height))
        shares = _shares(layer, round(panel.height * _DPI), round(panel.width * _DPI))
        axes.imshow(shares, cmap=colours, vmin=0, vmax=shares.max() or 1, aspect="auto", interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.set_title(
            _caption(k, layer, style, topology.relays[k + 1].size), fontsize=style.letters, pad=3, linespacing=1.2
        )
        if style.words:
            axes.set_xlabel("outputs", fontsize=style.letters - 1, labelpad=2)
            axes.set_ylabel("inputs", fontsize=style.letters - 1, labelpad=2)
    whole = depth == len(topology)
    head.append(
        _counts(connections, shapes, _n_relays(topology)) if whole else f"the first {depth} of {len(topology):,} layers"
    )
    _write(figure, head, _HEAD, 0.15)
    _write(figure, notes, _FOOT, shift + bottom)
    return figure


def _style(panels: int) -> _Style:
    if panels <= 4:
        return _Style(4.5 if panels == 1 else 3.0, panels, 9, words=True)
    if panels <= 12:
        return _Style(2.4, 4, 8, words=True)
    return _Style(1.5, 6, 7, words=False) if panels <= 30 else _Style(1.15, 12, 6.5, words=False)


def _arrange(shapes: Sequence[tuple[int, int]], style: _Style) -> tuple[list[_Panel], float, float]:
    """Return the panels row by row, each row centred, and the width and height that they take."""
    side, columns = style.side, style.columns
    gap, above, below = (0.55, 0.12, 0.25) if style.words else (0.25, 0.1, 0.04)
    caption = 2 * style.letters * _LINE
    width = max(columns * (side + gap) + gap, 4.0)
    panels: list[_Panel] = []
    top = 0.0
    for start in range(0, len(shapes), columns):
        row = [_box(n_in, n_out, side) for n_in, n_out in shapes[start : start + columns]]
        top += above + caption
        left = (width - len(row) * (side + gap) + gap) / 2
        panels += [_Panel(left + i * (side + gap) + (side - w) / 2, top, w, h) for i, (w, h) in enumerate(row)]
        top += max(h for _, h in row) + below
    return panels, width, top + 0.05


def _box(n_in: int, n_out: int, side: float) -> tuple[float, float]:
    """Return width and height of a panel, in the shape of the layer but no thinner than 1 : 4."""
    ratio = min(max(n_out / n_in, 0.25), 4.0)
    return side * min(1.0, ratio), side * min(1.0, 1 / ratio)


def _caption(k: int, layer: sp.csr_array, style: _Style, relays: int) -> str:
    n_in, n_out = layer.shape
    if style.words:
        return f"layer {k}: {n_in} × {n_out}\n{_counts(layer.nnz, [layer.shape], relays)}"
    return f"{k}: {n_in} × {n_out}\n{layer.nnz:,}, {layer.nnz / (n_in * n_out):.3g}"


def _notes(shapes: Sequence[tuple[int, int]], panels: Sequence[_Panel], style: _Style, width: float) -> list[str]:
    notes: list[str] = []
    if not style.words:
        notes += _wrapped("Over each panel: layer: inputs × outputs, connections, density.", width - 0.4, _FOOT)
    drawn = zip(shapes, panels, strict=True)
    if any(n_in > round(p.height * _DPI) or n_out > round(p.width * _DPI) for (n_in, n_out), p in drawn):
        shades = "Where neurons outnumber pixels: the darker a pixel, the more of the connections under it exist."
        notes += _wrapped(shades, width - 0.4, _FOOT)
    return notes


def _shares(layer: sp.csr_array, height: int, width: int) -> npt.NDArray[np.float64]:
    """Return an image of at most height x width pixels: the share of the connections under each pixel that exist."""
    n_in, n_out = layer.shape
    rows, columns = _edges(n_in, height), _edges(n_out, width)
    column_of = np.searchsorted(columns, layer.indices, side="right") - 1
    counts = [
        np.bincount(column_of[layer.indptr[first] : layer.indptr[last]], minlength=len(columns) - 1)
        for first, last in zip(rows[:-1], rows[1:], strict=True)
    ]
    return np.array(counts) / np.outer(np.diff(rows), np.diff(columns))


def _edges(n: int, pixels: int) -> _Ints:
    """Return where the pixels begin and end when n neurons share at most `pixels` of them."""
    parts = min(n, pixels)
    return np.array([i * n // parts for i in range(parts + 1)], np.int64)


# ---- the layered graph


def _layered(topology: Topology) -> Figure:
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    sizes, depth = topology.sizes, len(topology)
    if depth > _MAX_COLUMNS:
        raise SpecError(
            f"The 'net' parameter of draw, kind='layered', must have at most {_MAX_COLUMNS} layers. Got {depth}; "
            f"draw a part of it, net.layers[:{_MAX_COLUMNS}], or kind='spy'."
        )
    counts = [layer.nnz for layer in topology]
    connections = sum(counts)
    keep = min(1.0, _MAX_LINES / max(connections, 1))
    rng = np.random.default_rng(0)  # a sample for the eye: fixed, so that a topology always gives the same picture
    kept = [_sample(count, keep, rng) for count in counts]
    drawn = sum(map(len, kept))

    width, tall = min(max(1.5 * depth + 1, 5.0), 18.0), min(max(0.3 * max(sizes), 2.0), 6.0)
    shapes = list(zip(sizes[:-1], sizes[1:], strict=True))
    head = [*_wrapped(_name(topology), width - 0.4, _HEAD), _counts(connections, shapes, _n_relays(topology))]
    if drawn < connections:
        head.append(f"{drawn:,} of the connections drawn, chosen at random")
    below = 0.45
    height = 0.35 + len(head) * _HEAD * _LINE + tall + below
    figure: Any = Figure(figsize=(width, height), dpi=_DPI)
    axes = figure.add_axes((0.5 / width, below / height, 1 - 1 / width, tall / height))
    axes.set(xlim=(0, depth), ylim=(0, 1))
    axes.set_axis_off()
    heights = [_column(n, max(sizes)) for n in sizes]
    for k, positions in enumerate(kept):
        layer = topology[k]
        rows = np.searchsorted(layer.indptr, positions, side="right") - 1
        ends = np.empty((len(positions), 2, 2))  # connection, end, (x, y)
        ends[:, :, 0] = k, k + 1
        ends[:, 0, 1], ends[:, 1, 1] = heights[k][rows], heights[k + 1][layer.indices[positions]]
        opacity = min(0.7, max(0.05, 5 / math.sqrt(len(positions) + 1)))
        lines = LineCollection(list(ends), colors=_DARK, linewidths=0.6, alpha=opacity, zorder=1, clip_on=False)
        axes.add_collection(lines)
    for k, column in enumerate(heights):
        _draw_neurons(axes, k, column, tall, topology.relays[k])
        under = {"xytext": (0, -9), "textcoords": "offset points", "annotation_clip": False}
        axes.annotate(str(sizes[k]), (k, 0), ha="center", va="top", fontsize=9, **under)
    _write(figure, head, _HEAD, 0.15)
    return figure


def _sample(connections: int, keep: float, rng: np.random.Generator) -> _Ints:
    """Return the positions, in csr order, of the share `keep` of a layer's connections; at least one if it has any."""
    if keep == 1.0:
        return np.arange(connections, dtype=np.int64)
    wanted = min(connections, max(1, round(connections * keep)))
    return np.sort(rng.choice(connections, wanted, replace=False)) if wanted else np.zeros(0, np.int64)


def _column(n: int, largest: int) -> npt.NDArray[np.float64]:
    """Return the heights of n neurons, neuron 0 at the top; the square root leaves small layers visible."""
    half = 0.5 * math.sqrt(n / largest) if n > 1 else 0.0
    return np.linspace(0.5 + half, 0.5 - half, n)


def _draw_neurons(axes: Any, k: int, column: npt.NDArray[np.float64], tall: float, relays: _Ints) -> None:
    """Draw a column of neurons as dots, relays hollow; or, where dots would touch, as a bar with light marks."""
    gap = 72 * tall * (column[0] - column[-1]) / (len(column) - 1) if len(column) > 1 else 72.0
    area = min(7.0, 0.7 * gap) ** 2
    dots = {"linewidths": 0.0, "clip_on": False}
    if gap >= 1.5:
        axes.scatter(np.full(len(column), k), column, s=area, color=_DOT, zorder=2, **dots)
    else:
        ends = [column[0], column[-1]]
        axes.plot([k, k], ends, color=_DOT, linewidth=2.5, solid_capstyle="round", zorder=2, clip_on=False)
    if relays.size:
        hollow = 0.35 * area if gap >= 1.5 else 1.5
        axes.scatter(np.full(relays.size, k), column[relays], s=hollow, color="white", zorder=3, **dots)
