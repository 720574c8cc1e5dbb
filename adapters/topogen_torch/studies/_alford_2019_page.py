"""The page of the study of Alford et al.: what was printed beside what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING

from topogen_torch.studies._alford_2019_figures import RECIPE_TITLES, RETRAINED, figures_of, sparsity
from topogen_torch.studies._alford_2019_published import CURVES, GIVEN, PRUNED
from topogen_torch.studies._alford_2019_rows import DENSITIES, RECIPES, all_rows
from topogen_torch.studies._page import by_settings, percent, table
from topogen_torch.studies._study import Measured

if TYPE_CHECKING:
    from topogen_torch.studies._alford_2019_rows import Row

__all__ = ["page"]

Settings = tuple[str, str, float, int]
"""Recipe, topology, density and width."""

Accuracies = dict[Settings, list[float]]
"""Test accuracies of the nets of each setting."""

_TITLES = {
    ("lenet-300-100", "mnist"): "LeNet-300-100 on MNIST",
    ("lenet-5", "mnist"): "LeNet-5 on MNIST",
    ("lenet-5", "cifar10"): "LeNet-5 on CIFAR-10",
}

_INTRODUCTION = """\
S. Alford, R. Robinett, L. Milechin and J. Kepner, "Training Behavior of Sparse Neural Network Topologies", HPEC 2019,
[arXiv:1810.00299](https://arxiv.org/abs/1810.00299), trained nets on the structures that pruning leaves and on
RadiX-Nets. They found that sparse nets come close to dense ones, and that extreme sparsity makes training unstable.
Here the same is measured without masks: the layers store and compute the connections that exist and nothing else.
"""

_SETTINGS = """\
Every net is trained in three ways:

- **Published settings**: those of the authors' last program. Plain gradient descent, learning rate 0.2 all the time,
  batch 100; weights from a normal distribution cut off at two deviations, 0.04 (linear) or 0.05 (convolutions),
  whatever the fan-in; biases 0.1 (linear) or 0; an L2 penalty of 0.004 on the weights of linear layers; a rectifier
  behind every layer, that of the logits included.
- **No rectifier on the logits**: the same but for that.
- **This library's settings**: what `topogen train` does where nothing else is asked for. No rectifier on the logits;
  He's initialisation for the fan-in that each neuron really has, biases 0; learning rate 0.1 (LeNet-5: 0.02, since
  0.1 diverges on CIFAR-10), falling as a cosine, momentum 0.9, penalty 0.0001.

LeNet-300-100 takes 10,200 steps (17 epochs; the authors' 10,000 are 16.7), LeNet-5 on MNIST 3,000 and on CIFAR-10
5,000. Iterative pruning follows the authors' cubic schedule, from 20 to 50 % of the run, every 2 %: every layer loses
the same share, the logits' too. One-time pruning takes the smallest weights of a dense net: the same share of every
layer, or all those below one threshold, whatever their layer.
"Retrained" means: the structure is kept, the weights are drawn anew, and the net is trained as a new one.
LeNet-300-100 has three structures; the first is retrained from three initialisations, the other two from one each
(with this library's settings, and after pruning by one threshold, one each), so that the spread is over both. Random
and RadiX patterns leave the last layer dense, and in LeNet-5 the first convolution too. Accuracies are those of the
test set after the last step; there is no validation set.
"""

_DIFFERENCES = """\
- No masks. In the authors' program a masked weight keeps its value and may come back when the mask is computed anew;
  here it is gone.
- Random patterns have an exact number of connections; theirs are drawn entry by entry.
- Whether one-time pruning had one threshold or one for each layer is not given, so both are measured. The accuracies
  without further training are read off a slide, whose dense net has 97.4 %: not the net of the table, which has
  97.03 %.
- Ours all take the same number of steps at the same learning rate. The authors' rate was 0.2 until step 10,000, then
  0.1 and 0.05; which of their nets went on after that step is not given.
- All 60,000 training images of MNIST are trained on; the authors' reader holds back 5,000.
- LeNet-5 is trained for fewer steps, 3,000 (MNIST) and 5,000 (CIFAR-10) instead of 10,000, and without the local
  response normalisation, which divides by (1 + 0.00011 Σx²)^0.75 over nine channels.
- CIFAR-10's training images are cut to 24 x 24 at random places and mirrored at random, as theirs; their brightness and
  contrast are left alone, and colours are standardised over the data set, not image by image.
- Published figures are single nets from the authors' table and slides of 2018. The paper of 2019 may have updated some.
- RadiX patterns in LeNet-5 are ours: the authors have none. See below.
"""

_RADIX = """\
Of LeNet-300-100 the first two layers are `RadixNet(systems=[[r, r]])` with dense widths, the first inputs dropped where
they are too many: r = 10 gives the authors' two nets, r = 2 is added. Densities of 0.05 and 0.01 have no RadiX-Net on
these sizes: N' would be 400 and 10,000, and the hidden layers are no multiples of it.

Of LeNet-5 the second convolution and the layer behind it are *one* RadiX-Net, `systems=[[10, 5]]`, N' = 50: its nodes
are the 500 pairs of offset and channel that the convolution reads, the 50 channels at each place, and the neurons. Its
first layer is the same at every place, as a convolution must be. So every pair is joined by as many paths as there are
places. The convolution has 20 % of its weights, the layer behind it 10 %. Its random twin has as many in each.
"""


def page(measured: Sequence[Measured]) -> str:
    """Return the body of the page."""
    parts = [_INTRODUCTION, "## What came out\n", _found(measured), "## Settings\n", _SETTINGS]
    for net, title in _TITLES.items():
        own = [one for one in measured if (one.row.network, one.row.data) == net]
        parts += [f"## {title}\n", *(_network(own, net) if own else ["Not measured yet.\n"])]
    parts += ["## The RadiX-Nets\n", _RADIX, "## What differs from the paper\n", _DIFFERENCES]
    return "\n".join(parts)


# ---- what came out


def _found(measured: Sequence[Measured]) -> str:
    """Return what the figures say, above all those of LeNet-300-100: a point each, with the figures in it."""
    own = [one for one in measured if one.row.network == "lenet-300-100"]
    found = _accuracies(own)
    lines = [*_losses(own), *_one_threshold(found), *_radix_beside_random(found), *_at_99_percent(found)]
    for net, title in _TITLES.items():
        if net[0] == "lenet-5":
            lines += _lenet_5([one for one in measured if (one.row.network, one.row.data) == net], net, title)
    return "\n".join(f"- {line}" for line in lines) + "\n" if lines else "Not measured yet.\n"


def _losses(own: Sequence[Measured]) -> Iterator[str]:
    counts: list[str] = []
    for recipe, title in RECIPE_TITLES.items():
        nets = [one for one in own if one.row.recipe == recipe and one.row.topology.endswith("retrained")]
        if nets:
            counts.append(f"{sum(one.results['unnamed'] > 0 for one in nets)} of {len(nets)} ({title})")
    if counts:
        yield (
            "**Nets that lose a class.** Of the nets retrained on a pruned structure, those that name at least "
            f"one digit for no test image at all: {', '.join(counts)}. A rectified logit that is negative for every "
            "image has no gradient, and its class is lost for good; a lost class costs about ten points. (At 99 % "
            "sparsity the last layer has ten connections for ten classes, so that one can go unnamed for want of any.) "
            "The published accuracies of LeNet-5 go down in tens, too: 98.95, 89.92, 79.94, 69.92; and 11.35 % is the "
            "share of the digit 1 among the test images."
        )


def _one_threshold(found: Accuracies) -> Iterator[str]:
    net = ("lenet-300-100", "mnist")
    pruned = [found.get(("published", f"one-time{way}", 0.1, 1)) for way in ("", " global")]
    anew = [found.get(("published", f"one-time{way} retrained", 0.01, 1)) for way in ("", " global")]
    if all(pruned) and all(anew):
        shares, threshold, shares_anew, threshold_anew = (percent(nets).split(" ")[0] for nets in (*pruned, *anew))
        yield (
            "**One threshold, or the same share of every layer?** Pruned once to 90 % sparsity and not trained any "
            f"further, nets have {threshold} % with one threshold and {shares} % with the same share of every layer "
            f"(published settings); about {CURVES[net][0.1]:g} % is published. Trained anew at 99 %, {threshold_anew} "
            f"and {shares_anew} %; {PRUNED[net]['one-time retrained'][0.01]:.2f} % is published. Layers can spare "
            "different shares: at 99 % the same share leaves the logits ten connections, one threshold hundreds."
        )


def _radix_beside_random(found: Accuracies) -> Iterator[str]:
    parts: list[str] = []
    for recipe, title in RECIPE_TITLES.items():
        pairs = [
            (found.get((recipe, "radix", density, factor)), found.get((recipe, "random", density, factor)))
            for density, factor in ((0.5, 1), (0.1, 1), (0.5, 2), (0.1, 10))
        ]
        gains = [statistics.mean(radix) - statistics.mean(random) for radix, random in pairs if radix and random]
        if gains:
            parts.append(f"{100 * min(gains):+.2f} to {100 * max(gains):+.2f} points ({title})")
    if parts:
        yield (
            "**RadiX beside random patterns of the same sizes and density:** mean accuracy of the RadiX-Nets less that "
            f"of the random nets is {', '.join(parts)}. Published: +0.15 and -0.47, single nets."
        )


def _at_99_percent(found: Accuracies) -> Iterator[str]:
    parts: list[str] = []
    for recipe, title in RECIPE_TITLES.items():
        kinds = ("iterative", "one-time", "iterative retrained", "random")
        nets = [found.get((recipe, topology, 0.01, 1)) for topology in kinds]
        if all(nets):
            parts.append(f"{', '.join(f'{100 * statistics.mean(net):.1f}' for net in nets if net)} ({title})")
    if parts:
        yield (
            "**At 99 % sparsity**, mean accuracies of nets pruned during training, pruned once, trained anew on the "
            f"structure of the first, and trained on a random pattern: {'; '.join(parts)}."
        )


def _lenet_5(own: Sequence[Measured], net: tuple[str, str], title: str) -> Iterator[str]:
    found, printed = _accuracies(own), PRUNED[net]
    kinds = (("dense", 1.0), ("iterative", 0.1), ("random", 0.1), ("radix", 0.1))
    parts: list[str] = []
    for recipe, words in RECIPE_TITLES.items():
        nets = [found.get((recipe, topology, density, 1)) for topology, density in kinds]
        if all(nets):
            parts.append(f"{', '.join(f'{100 * statistics.mean(net):.2f}' for net in nets if net)} % ({words})")
    if not parts:
        return
    published = printed["dense"][1.0], printed["iterative"][0.1], GIVEN[net]["random", 0.1, 1]
    text = (
        f"**{title}**, a net each: dense, pruned to 90 % during training, and trained on random and RadiX patterns of "
        f"90 %: {'; '.join(parts)}. Published: {', '.join(f'{one:.2f}' for one in published)} %, and no RadiX-Net."
    )
    anew = [one.results for one in own if one.row.recipe == "published" and one.row.topology.endswith("retrained")]
    old = [accuracy for topology in RETRAINED for accuracy in printed.get(topology, {}).values()]
    if anew and old:
        accuracies = [100 * results["test_accuracy"] for results in anew]
        text += (
            f" Trained anew on pruned structures (published settings), {len(anew)} nets have {min(accuracies):.2f} to "
            f"{max(accuracies):.2f} %, and {sum(results['unnamed'] > 0 for results in anew)} of them lose a class; the "
            f"published ones have {min(old):.2f} to {max(old):.2f} %."
        )
    yield text


# ---- tables


def _network(own: Sequence[Measured], net: tuple[str, str]) -> list[str]:
    pictures, found = figures_of(own), _accuracies(own)
    planned = {row.topology for row in all_rows(quick=False) if (row.network, row.data) == net}
    parts = [_dense(found, net)]
    for topology, picture, title in (
        ("one-time", "", "Pruned once, the same share of every layer, not trained any further"),
        ("one-time global", "", "Pruned once, by one threshold, not trained any further"),
        ("iterative", "pruned", "Pruned during training"),
        ("one-time retrained", "", "Trained anew on the structure of one-time pruning, the same share of every layer"),
        ("one-time global retrained", "", "Trained anew on the structure of one-time pruning by one threshold"),
        ("iterative retrained", "instability", "Trained anew on the structure of iterative pruning"),
    ):
        if topology in planned:
            parts += [f"### {title}\n", _pruned(found, net, topology)]
        if picture in pictures:
            parts.append(_picture(net, picture))
    parts += ["### Nets that name some class for no test image\n", _lost(own, planned)]
    parts += ["### Random and RadiX patterns\n", _given(own, net)]
    return parts + [_picture(net, name) for name in ("given", "threshold") if name in pictures]


_PICTURES = {
    "pruned": "Test accuracy against sparsity, of nets pruned once and of nets pruned during training",
    "instability": "Test accuracy of every net trained anew on a pruned structure, by sparsity",
    "given": "Test accuracy of random and RadiX patterns, at constant size and at a constant number of connections",
    "threshold": "Sparsity and thresholds of iterative pruning over the steps",
}


def _picture(net: tuple[str, str], name: str) -> str:
    return f"![{_PICTURES[name]}](alford-2019-{net[0]}-{net[1]}-{name}.svg)\n"


def _dense(found: Accuracies, net: tuple[str, str]) -> str:
    printed = PRUNED[net]["dense"][1.0]
    cells = [_cell(found.get((recipe, "dense", 1.0, 1))) for recipe in RECIPES]
    return table(["test accuracy, %", "published", *RECIPE_TITLES.values()], [["dense", f"{printed:.2f}", *cells]])


def _pruned(found: Accuracies, net: tuple[str, str], topology: str) -> str:
    if topology == "one-time global":
        printed = {density: f"about {accuracy:g}" for density, accuracy in CURVES[net].items()}  # read off a curve
    else:
        printed = {density: f"{accuracy:.2f}" for density, accuracy in PRUNED[net].get(topology, {}).items()}
    rows = [
        [
            sparsity(density),
            printed.get(density, "not given"),
            *(_cell(found.get((recipe, topology, density, 1))) for recipe in RECIPES),
        ]
        for density in DENSITIES
    ]
    return table(["sparsity", "published", *RECIPE_TITLES.values()], rows)


def _lost(own: Sequence[Measured], planned: Container[str]) -> str:
    counts = by_settings(own, _settings, "unnamed")
    rows: list[list[str]] = []
    for topology in (name for name in RETRAINED if name in planned):
        for density in DENSITIES:
            nets = [counts.get((recipe, topology, density, 1), []) for recipe in RECIPES]
            cells = [f"{sum(count > 0 for count in net)} of {len(net)}" if net else "not measured" for net in nets]
            rows.append([f"{topology}, {sparsity(density)}", *cells])
    return table(["structure and sparsity", *RECIPE_TITLES.values()], rows)


def _given(own: Sequence[Measured], net: tuple[str, str]) -> str:
    found, connections = _accuracies(own), by_settings(own, lambda row: _settings(row)[1:], "connections")
    patterns: set[tuple[str, float, int]] = {key for key in (*connections, *GIVEN[net]) if key[0] in _NAMES}
    rows: list[list[str]] = []
    for key in sorted(patterns, key=lambda key: (key[2], -key[1], key[0])):
        topology, density, factor = key
        wide = f", {factor} times as wide" if factor > 1 else ""
        counted = sorted({f"{count:,}" for count in connections.get(key, [])})
        rows.append(
            [
                f"{_NAMES[topology]}, {sparsity(density)}{wide}",
                " or ".join(counted) or "not measured",
                f"{GIVEN[net][key]:.2f}" if key in GIVEN[net] else "not given",
                *(_cell(found.get((recipe, topology, density, factor))) for recipe in RECIPES),
            ]
        )
    return table(["pattern and sparsity", "connections", "published", *RECIPE_TITLES.values()], rows)


_NAMES = {"random": "random", "radix": "RadiX", "random twin": "random twin of RadiX"}


def _accuracies(own: Sequence[Measured]) -> Accuracies:
    return by_settings(own, _settings)


def _settings(row: Row) -> Settings:
    return row.recipe, row.topology, row.density, row.factor


def _cell(shares: Sequence[float] | None) -> str:
    return percent(shares).replace("seed", "net")
