"""Pictures: every connection where it belongs, legible at any size, written whole, and no global state touched."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

import topogen as tg
from topogen import _draw
from topogen.errors import SpecError
from topogen.testing import patterns, topologies

LENET = tg.Chain(
    tg.Trim(tg.RadixNet(systems=[[10, 10]], widths=[8, 3, 1]), [784, 300, 100], keep="last"), tg.Dense(sizes=[100, 10])
)
_BOTH = ["spy", "layered"]
DEEP = tg.RadixNet(systems=[[2, 2]] * 60)


def texts(figure: Figure) -> list[str]:
    return figure.texts[0].get_text().split("\n")


# ---- what is drawn


@settings(max_examples=15)
@given(topologies())
def test_spy_shows_every_connection(net):
    figure = tg.draw(net)
    assert len(figure.axes) == len(net)
    for axes, layer in zip(figure.axes, net, strict=True):
        assert np.array_equal(axes.images[0].get_array(), layer.toarray())


@given(patterns(), st.integers(1, 12), st.integers(1, 12))
def test_a_pixel_is_the_share_of_its_connections(pattern, height, width):
    image = _draw._shares(pattern, height, width)
    dense = pattern.toarray()
    n_in, n_out = dense.shape
    rows, columns = min(n_in, height), min(n_out, width)
    assert image.shape == (rows, columns)
    for i in range(rows):
        for j in range(columns):
            under = dense[i * n_in // rows : (i + 1) * n_in // rows, j * n_out // columns : (j + 1) * n_out // columns]
            assert image[i, j] == pytest.approx(under.mean())


def test_a_wide_layer_keeps_its_structure():
    """4096 neurons on 675 pixels: a half that is empty stays white, a denser quarter is darker."""
    rng = np.random.default_rng(0)
    pattern = sp.random_array((4096, 4096), density=0.002, rng=rng).tolil()
    pattern[:, 2048:] = 0
    pattern[:1024, :1024] = sp.random_array((1024, 1024), density=0.02, rng=rng)
    figure = tg.draw(pattern.tocsr())
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    shades = 255 - np.asarray(canvas.buffer_rgba())[..., :3].mean(axis=2)
    box = figure.axes[0].get_window_extent()
    panel = shades[::-1][round(box.y0) + 3 : round(box.y1) - 3, round(box.x0) + 3 : round(box.x1) - 3][::-1]
    half, quarter = panel.shape[0] // 2, panel.shape[0] // 4
    assert panel[:, half + 2 :].max() == 0
    assert panel[: quarter - 2, : quarter - 2].mean() > 3 * panel[half:, :quarter].mean() > 0
    assert panel.mean() < 100  # no black square


@settings(max_examples=15)
@given(topologies())
def test_layered_joins_the_neurons_that_are_joined(net):
    figure = tg.draw(net, kind="layered")
    axes = figure.axes[0]
    dots = [collection.get_offsets() for collection in axes.collections if collection.get_offsets().any()]
    heights = {round(x): column[:, 1] for column in dots for x in column[:1, 0]}
    assert sorted(heights) == list(range(len(net.sizes)))
    assert [len(heights[k]) for k in range(len(net.sizes))] == list(net.sizes)
    for column in heights.values():
        assert (np.diff(column) < 0).all()  # neuron 0 at the top
    lines = axes.collections[: len(net)]
    for k, (collection, layer) in enumerate(zip(lines, net, strict=True)):
        drawn = {(tuple(line[0]), tuple(line[1])) for line in collection.get_segments()}
        coo = layer.tocoo()
        ends = zip(heights[k][coo.row], heights[k + 1][coo.col], strict=True)
        assert drawn == {((k, a), (k + 1, b)) for a, b in ends}
    assert [text.get_text() for text in axes.texts] == [str(n) for n in net.sizes]


def test_many_connections_are_sampled_and_the_title_says_so():
    net = tg.generate(LENET)
    figure = tg.draw(net, kind="layered")
    assert texts(figure) == [
        "Chain: sizes (784, 300, 100, 10)",
        "27,520 connections, density 0.103",
        "4,000 of the connections drawn, chosen at random",
    ]
    heights = [_draw._column(n, 784) for n in net.sizes]
    total = 0
    for k, layer in enumerate(net):
        segments = np.array(figure.axes[0].collections[k].get_segments())
        rows = np.searchsorted(-heights[k], -segments[:, 0, 1] - 1e-9)
        columns = np.searchsorted(-heights[k + 1], -segments[:, 1, 1] - 1e-9)
        assert layer[rows, columns].all()
        assert len(set(zip(rows, columns, strict=True))) == len(rows)
        assert (
            set(columns) == set(range(layer.shape[1])) or layer.shape[1] > 10
        )  # no output of the last layer is left out
        total += len(rows)
    assert total == 4000
    again = tg.draw(net, kind="layered")
    for a, b in zip(figure.axes[0].collections, again.axes[0].collections, strict=True):
        assert np.array_equal(a.get_offsets(), b.get_offsets())
        assert not hasattr(a, "get_segments") or np.array_equal(np.array(a.get_segments()), np.array(b.get_segments()))


def test_few_connections_are_not_sampled():
    figure = tg.draw(tg.generate(tg.Dense(sizes=[40, 100])), kind="layered")
    assert texts(figure) == ["Dense: sizes (40, 100)", "4,000 connections, density 1"]
    assert len(figure.axes[0].collections[0].get_segments()) == 4000


@pytest.mark.parametrize("kind", ["spy", "layered"])
def test_empty_layers_and_single_neurons(kind, tmp_path):
    for net in (
        tg.Topology([np.zeros((30, 20))]),
        tg.Topology([[[1]]]),
        tg.Topology([np.zeros((1, 5)), np.ones((5, 1))]),
    ):
        tg.draw(net, tmp_path / "picture.png", kind=kind)
    assert texts(tg.draw([[1]], kind=kind)) == ["Topology: sizes (1, 1)", "1 connection, density 1"]


def test_lazy_layers_are_drawn_and_those_left_out_are_not_built():
    built: list[int] = []

    def build(k: int) -> sp.csr_array:
        built.append(k)
        return tg.as_pattern(np.eye(3))

    figure = tg.draw(tg.Topology(tg.LazyLayers((3,) * 501, build)))
    assert built == list(range(120))
    assert texts(figure) == ["Topology: 500 layers of 3 × 3", "the first 120 of 500 layers"]


# ---- nothing overlaps, nothing is cut


@pytest.mark.parametrize(
    ("spec", "kinds"),
    [
        (tg.Dense(sizes=[1, 1]), _BOTH),
        (tg.RadixNet(systems=[[2, 2, 2]]), _BOTH),
        (tg.RadixNet(systems=[[3, 3, 4], [4, 3, 3]]), _BOTH),
        (LENET, _BOTH),
        (tg.Dense(sizes=[10, 2000, 10]), _BOTH),
        (tg.RadixNet(systems=[[2] * 6, [2] * 6], widths=[16] * 13), _BOTH),
        (tg.RadixNet(systems=[[2, 2]] * 15), _BOTH),
        (tg.ErdosRenyi(sizes=[123_456] * 31, density=1e-8), _BOTH),
        (tg.ErdosRenyi(sizes=[12_345] * 121, density=1e-4), ["spy"]),
        (tg.ErdosRenyi(sizes=range(7, 100, 5), density=0.1), _BOTH),
    ],
    ids=["1", "8", "36", "lenet", "flat", "12", "30", "wide30", "wide120", "uneven"],
)
def test_words_neither_overlap_nor_are_cut(spec, kinds):
    net = tg.generate(spec, rng=0)
    for kind in kinds:
        assert faults(tg.draw(net, kind=kind)) == []


def faults(figure: Figure) -> list[str]:
    """Return the words that are cut by the edge of the picture, and those that meet others or a panel of a spy plot."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    words = list(figure.texts)
    for axes in figure.axes:
        words += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
    things = [(text.get_text(), text.get_window_extent()) for text in words if text.get_text()]
    width, height = canvas.get_width_height()
    cut = [f"{name!r} is cut" for name, b in things if b.x0 < 0 or b.y0 < 0 or b.x1 > width or b.y1 > height]
    things += [("a panel", axes.get_window_extent()) for axes in figure.axes if axes.images]
    x0, y0, x1, y1 = np.array([box.shrunk(0.98, 0.9).extents for _, box in things]).T
    meet = (x0[:, None] < x1) & (x0 < x1[:, None]) & (y0[:, None] < y1) & (y0 < y1[:, None])
    return cut + [f"{things[i][0]!r} meets {things[j][0]!r}" for i, j in np.argwhere(np.triu(meet, 1))]


def test_the_detector_of_overlaps_detects():
    figure = tg.draw(tg.generate(tg.RadixNet(systems=[[2, 2]])))
    assert faults(figure) == []
    figure.axes[0].set_title("a very long title " * 5)
    figure.text(0.99, 0.5, "cut")
    found = faults(figure)
    assert "'cut' is cut" in found
    assert any(fault.startswith("'a very long title") and "meets 'layer 1" in fault for fault in found)


# ---- files


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
@pytest.mark.parametrize("kind", ["spy", "layered"])
def test_files_are_written_whole(kind, suffix, start, tmp_path):
    path = tmp_path / f"picture{suffix}"
    path.write_text("old")
    figure = tg.draw(tg.generate(tg.RadixNet(systems=[[2, 2]])), path, kind=kind)
    assert isinstance(figure, Figure)
    whole = path.read_bytes()
    assert whole.startswith(start)
    assert list(tmp_path.iterdir()) == [path]
    tg.draw(tg.generate(tg.RadixNet(systems=[[2, 2]])), path, kind=kind)
    assert path.read_bytes() == whole


def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    path = tmp_path / "picture.png"
    path.write_text("old")
    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="No space left"):
        tg.draw([[1]], path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_pngs_are_reproducible(tmp_path):
    net = tg.generate(LENET)
    for name in ("a.png", "b.png"):
        tg.draw(net, tmp_path / name, kind="layered")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("path", ["picture.jpg", "picture", "picture.png.gz", 3, b"picture.png"])
def test_suffixes(path):
    message = r"The 'path' parameter of draw must be a path that ends in '\.png' or '\.svg'\. Got "
    with pytest.raises(SpecError, match=message):
        tg.draw([[1]], path)


def test_refusals(tmp_path):
    with pytest.raises(
        SpecError, match=re.escape("The 'kind' parameter of draw must be 'spy' or 'layered'. Got 'heat'.")
    ):
        tg.draw([[1]], kind="heat")
    with pytest.raises(SpecError, match=r"The 'net' parameter of topogen must be a Topology, .* Got 3\."):
        tg.draw(3)
    message = (
        "The 'net' parameter of draw, kind='layered', must have at most 30 layers. Got 120; draw a part of it, "
        "net.layers[:30], or kind='spy'."
    )
    net = tg.generate(DEEP)
    with pytest.raises(SpecError, match=re.escape(message)):
        tg.draw(net, tmp_path / "picture.png", kind="layered")
    assert list(tmp_path.iterdir()) == []
    tg.draw(net.layers[:30], kind="layered")
    with pytest.raises(FileNotFoundError, match="nofolder"):
        tg.draw([[1]], tmp_path / "nofolder" / "picture.png")


def test_pyplot_is_never_loaded():
    script = """
import sys, topogen as tg
print("matplotlib" in sys.modules)
for kind in ("spy", "layered"):
    tg.draw([[1]], kind=kind)
print("matplotlib.pyplot" in sys.modules)
import matplotlib.pyplot
print("matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True"]


def test_colours_are_what_they_are_called():
    figure = tg.draw([[1, 0]])
    image = figure.axes[0].images[0]
    assert image.cmap(1.0) == pytest.approx(to_rgba(_draw._DARK))
    assert image.cmap(0.0) == pytest.approx(to_rgba("white"))


# ---- relays


def hollow(figure: Figure) -> list[list[list[float]]]:
    """Return where the white dots of each column are."""
    return [
        collection.get_offsets().tolist()
        for collection in figure.axes[0].collections
        if collection.get_offsets().any() and (collection.get_facecolor() == 1).all()
    ]


RELAYED = tg.Topology([[[1, 1], [1, 0]], [[1, 0, 0], [0, 1, 1]]], relays=[[], [1], [1, 2]])


def test_relays_are_hollow_and_counted():
    figure = tg.draw(RELAYED, kind="layered")
    heights = [_draw._column(n, 3) for n in RELAYED.sizes]
    assert hollow(figure) == [[[1.0, heights[1][1]]], [[2.0, heights[2][1]], [2.0, heights[2][2]]]]
    assert texts(figure)[-1] == "6 connections, density 0.6, 3 relays"
    spy = tg.draw(RELAYED)
    assert texts(spy)[-1] == "6 connections, density 0.6, 3 relays"
    captions = [axes.get_title().split("\n")[1] for axes in spy.axes]
    assert captions == ["3 connections, density 0.75, 1 relay", "3 connections, density 0.5, 2 relays"]


def test_relays_among_many_neurons_are_marks_on_the_bar():
    wide = tg.Topology([np.eye(3000)], relays=[[], [5, 2999]])
    column = _draw._column(3000, 3000)
    assert hollow(tg.draw(wide, kind="layered")) == [[[1.0, column[5]], [1.0, column[2999]]]]


def test_without_relays_nothing_is_hollow_and_nothing_said():
    figure = tg.draw(tg.Topology(RELAYED.layers), kind="layered")
    assert hollow(figure) == []
    assert texts(figure)[-1] == "6 connections, density 0.6"
