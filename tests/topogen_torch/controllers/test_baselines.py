"""Baselines of a score: its opposite, and its numbers dealt out anew."""

import re

import numpy as np
import pytest
import torch

import topogen as tg
import topogen_torch as tt
from topogen.errors import SpecError
from topogen_torch.controllers.criteria import magnitude


def model_of(seed=0):
    torch.manual_seed(seed)
    return tt.sparse_mlp(tg.generate(tg.Dense(sizes=[12, 9, 5])))


def layers_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, tt.SparseLinear)}


def scores_of(model):
    return {name: magnitude(layer) for name, layer in layers_of(model).items()}


@pytest.mark.parametrize("given", ["magnitude", "callable", "mapping"])
def test_the_opposite_keeps_the_smallest(given):
    model = model_of()
    score = {"magnitude": "magnitude", "callable": magnitude, "mapping": scores_of(model)}[given]
    before = {name: layer.to_scipy().toarray().ravel() for name, layer in layers_of(model).items()}
    tt.OneShot(model, density=0.2, score=tt.inverted(score)).step()
    for name, layer in layers_of(model).items():
        smallest = np.sort(np.argsort(np.abs(before[name]), kind="stable")[: layer.nnz])
        np.testing.assert_array_equal(np.flatnonzero(layer.pattern.toarray()), smallest)


@pytest.mark.parametrize("given", ["magnitude", "callable", "mapping"])
def test_shuffled_scores_keep_as_many_in_each_layer_elsewhere(given):
    counts, patterns = [], []
    for deal in (None, 0, 0, 1):
        model = model_of()
        score = {"magnitude": "magnitude", "callable": magnitude, "mapping": scores_of(model)}[given]
        score = score if deal is None else tt.shuffled(score, rng=deal)
        tt.OneShot(model, density=0.2, score=score, scope="global").step()
        counts.append([layer.nnz for layer in layers_of(model).values()])
        patterns.append([bytes(layer.pattern_hash.tolist()) for layer in layers_of(model).values()])
    assert counts[0] == counts[1] == counts[3]
    assert patterns[1] == patterns[2]
    assert not set(patterns[0]) & set(patterns[1])
    assert not set(patterns[1]) & set(patterns[3])


def test_every_place_is_equally_likely():
    """The largest of five numbers comes to lie at each place in a fifth of 2000 deals, within 5 standard deviations."""
    scores = {"0": torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0])}
    counts = np.bincount([int(tt.shuffled(scores, rng=seed)["0"].argmax()) for seed in range(2000)], minlength=5)
    assert (np.abs(counts - 400) < 5 * np.sqrt(2000 * 0.2 * 0.8)).all()


def test_layers_of_a_mapping_are_dealt_independently():
    numbers = torch.arange(30.0)
    dealt = tt.shuffled({"a": numbers, "b": numbers}, rng=0)
    assert not torch.equal(dealt["a"], dealt["b"])
    assert torch.equal(dealt["a"].sort().values, numbers)
    assert torch.equal(tt.shuffled({"b": numbers}, rng=0)["b"], dealt["b"])


def test_what_cannot_be_is_refused():
    for message, call in {
        "The 'score' parameter of inverted must be 'magnitude', a callable or a mapping. Got 'random'.": lambda: (
            tt.inverted("random")
        ),
        "The 'score' parameter of shuffled must be 'magnitude', a callable or a mapping. Got 3.": lambda: tt.shuffled(
            3, rng=0
        ),
        "The 'rng' parameter of shuffled must be an int, a SeedSequence or a Generator. Got None.": lambda: tt.shuffled(
            "magnitude", rng=None
        ),
        "The 'rng' parameter of shuffled must be an int >= 0, a numpy SeedSequence or a numpy Generator. "
        "Got -1.": lambda: tt.shuffled("magnitude", rng=-1),
    }.items():
        with pytest.raises(SpecError, match=f"^{re.escape(message)}$"):
            call()
