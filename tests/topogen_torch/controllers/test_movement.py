"""Movement: the sum by hand, scores that follow the connections, and a run that is resumed."""

import re

import numpy as np
import pytest
import torch
from torch import nn

import topogen as tg
import topogen_torch as tt
from topogen.errors import SpecError


def setting(seed=0):
    torch.manual_seed(seed)
    model = tt.sparse_mlp(tg.generate(tg.ErdosRenyi(sizes=[8, 7, 4], density=0.6), rng=seed), dtype=torch.float64)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def layers_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, tt.SparseLinear)}


def backward(model, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 8, dtype=torch.float64, generator=generator)
    optimizer.zero_grad()
    (model(x) - x[:, :4]).square().mean().backward()


def test_it_is_the_sum_of_what_gradients_do_to_weights():
    model, optimizer = setting()
    movement = tt.Movement(model)
    expected = [np.zeros(layer.pattern.shape) for layer in layers_of(model).values()]
    for seed in range(5):
        backward(model, optimizer, seed)
        for total, layer in zip(expected, layers_of(model).values(), strict=True):
            rows, columns = layer.pattern.nonzero()
            total[rows, columns] -= layer.values.detach().numpy() * layer.values.grad.numpy()
        movement.step()
        optimizer.step()
    for own, total, layer in zip(movement.scores().values(), expected, layers_of(model).values(), strict=True):
        np.testing.assert_allclose(own.numpy(), total[layer.pattern.toarray()], rtol=1e-12)
        torch.testing.assert_close(movement(layer), own)


def test_scores_follow_the_connections_and_newcomers_begin_at_zero():
    model, optimizer = setting()
    movement = tt.Movement(model)
    evolve = tt.SET(model, optimizer, rng=0, update_every=1, drop_fraction=0.4)
    backward(model, optimizer, 0)
    movement.step()
    layer = model[0]
    before = np.zeros(layer.pattern.shape)
    before[layer.pattern.toarray()] = movement(layer).numpy()
    was = layer.pattern.toarray()
    evolve.step()
    now = layer.pattern.toarray()
    assert (now & ~was).any()
    assert (now & was).any()
    np.testing.assert_array_equal(movement(layer).numpy(), np.where(was, before, 0)[now])


def test_a_pruner_keeps_what_moved_away_from_zero_most():
    model, optimizer = setting()
    movement = tt.Movement(model)
    backward(model, optimizer, 0)
    movement.step()
    scores = {name: own.numpy() for name, own in movement.scores().items()}
    before = {name: layer.pattern.nonzero() for name, layer in layers_of(model).items()}
    tt.OneShot(model, optimizer, density=0.2, score=movement).step()
    for name, layer in layers_of(model).items():
        kept = np.sort(np.argsort(-scores[name], kind="stable")[: layer.nnz])
        rows, columns = layer.pattern.nonzero()
        np.testing.assert_array_equal(rows, before[name][0][kept])
        np.testing.assert_array_equal(columns, before[name][1][kept])


def test_a_unit_of_several_weights_moves_as_a_whole():
    model = tt.BlockSparseLinear(np.ones((2, 2)), 2, dtype=torch.float64)
    movement = tt.Movement(model)
    model(torch.randn(3, 4, dtype=torch.float64)).square().sum().backward()
    movement.step()
    torch.testing.assert_close(movement(model), -(model.values * model.values.grad).sum((1, 2)).detach())


def test_short_floats_are_summed_in_single_precision():
    model = tt.SparseLinear(np.eye(3), bias=False, dtype=torch.bfloat16)
    movement = tt.Movement(model)
    model.values.grad = torch.ones_like(model.values)
    for _ in range(1000):
        movement.step()
    torch.testing.assert_close(movement(model), -1000 * model.values.detach().float(), rtol=1e-3, atol=0)


def train(model, optimizer, movement, prune, steps):
    for step in steps:
        backward(model, optimizer, step)
        movement.step()
        optimizer.step()
        prune.step()


def controller(model, optimizer, movement):
    return tt.GradualMagnitude(model, optimizer, density=0.1, begin_step=0, end_step=12, update_every=2, score=movement)


def test_states_with_hashes_of_the_first_version_are_taken():
    """Of layers, a controller and what it scores by."""
    model, optimizer = setting()
    movement = tt.Movement(model)
    ctl = controller(model, optimizer, movement)
    states = model.state_dict(), ctl.state_dict(), movement.state_dict()
    for name, layer in layers_of(model).items():
        first = tg.pattern_hash(layer.pattern, 1)
        states[0][f"{name}.pattern_hash"] = torch.frombuffer(bytearray.fromhex(first), dtype=torch.uint8)
        states[1]["layers"][name]["pattern_hash"] = states[2][name]["pattern_hash"] = first
    for part, state in zip((model, ctl, movement), states, strict=True):
        part.load_state_dict(state)
    for name, layer in layers_of(model).items():
        now = tg.pattern_hash(layer.pattern)
        assert bytes(layer.pattern_hash.tolist()).hex() == now
        assert ctl.state_dict()["layers"][name]["pattern_hash"] == movement.state_dict()[name]["pattern_hash"] == now


def test_a_run_that_is_resumed_is_the_same_bit_for_bit():
    model, optimizer = setting()
    movement = tt.Movement(model)
    prune = controller(model, optimizer, movement)
    train(model, optimizer, movement, prune, range(5))
    states = [part.state_dict() for part in (model, optimizer, movement, prune)]
    states = [torch.load(saved(state), weights_only=True) for state in states]
    train(model, optimizer, movement, prune, range(5, 14))

    other, its_optimizer = setting(seed=1)
    its_movement = tt.Movement(other)
    backward(other, its_optimizer, 0)
    its_movement.step()  # what it has is replaced
    other.load_state_dict(states[0])
    its_optimizer.load_state_dict(states[1])
    its_movement.load_state_dict(states[2])
    its_prune = controller(other, its_optimizer, its_movement)
    its_prune.load_state_dict(states[3])
    train(other, its_optimizer, its_movement, its_prune, range(5, 14))
    for a, b in zip(layers_of(model).values(), layers_of(other).values(), strict=True):
        assert torch.equal(a.pattern_hash, b.pattern_hash)
        assert torch.equal(a.values, b.values)
        assert torch.equal(movement(a), its_movement(b))


def saved(state):
    import io

    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return file


def test_what_cannot_be_is_refused():
    model, optimizer = setting()
    movement = tt.Movement(model)
    message = (
        "Movement.step needs the gradients of the sparse layers' values. Got none: call it after loss.backward() and "
        "before optimizer.zero_grad()."
    )
    with pytest.raises(SpecError, match=f"^{re.escape(message)}$"):
        movement.step()
    with pytest.raises(SpecError, match="The 'model' parameter of Movement must have sparse layers"):
        tt.Movement(nn.Linear(3, 2))
    message = "Movement must score layers of its own model. Got a SparseLinear that is none of '0', '2'."
    with pytest.raises(SpecError, match=f"^{re.escape(message)}$"):
        movement(tt.SparseLinear(np.eye(3)))
    state = movement.state_dict()
    with pytest.raises(
        SpecError, match=re.escape("The state of Movement must be of the layers ['0', '2']. Got ['0'].")
    ):
        movement.load_state_dict({"0": state["0"]})
    tt.OneShot(model, optimizer, density=0.1).step()
    with pytest.raises(
        SpecError, match=r"The state of Movement must belong to the model's pattern in layer '0', \w{12}"
    ):
        movement.load_state_dict(state)


def test_a_layer_that_holds_no_gradient_has_not_moved():
    model = nn.ModuleDict({"a": tt.SparseLinear(np.ones((4, 3))), "b": tt.SparseLinear(np.ones((4, 3)))})
    movement = tt.Movement(model)
    model["a"](torch.randn(5, 4)).square().sum().backward()
    movement.step()
    assert movement.scores()["a"].any()
    assert not movement.scores()["b"].any()
