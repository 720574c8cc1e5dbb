"""What PyTorch's own machinery does with a sparse layer: inductor, scaled gradients, threads, forked processes."""

import os
import shutil
import signal
import threading
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from torch import nn

import topogen as tg
import topogen_torch as tt
from topogen_torch._ops import _cpu

NET = tg.generate(tg.RadixNet(systems=[[4, 4]], widths=[3, 2, 1]))
compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++")),
    reason="no C++ compiler, which inductor needs",
)


def make(dtype=torch.float64):
    torch.manual_seed(0)
    return tt.sparse_mlp(NET, dtype=dtype)


def outcome(call, model, x):
    x = x.detach().requires_grad_()
    y = call(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]


@compiler
def test_inductor_compiles_forward_and_backward():
    model = tt.SparseLinear(NET[0], dtype=torch.float64)
    torch.compiler.reset()
    x = torch.randn(6, NET.sizes[0], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what inductor and the C++ compiler say of themselves
        found = outcome(torch.compile(model, fullgraph=True), model, x)
    for mine, true in zip(found, outcome(model, model, x), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile's own doing
def test_another_batch_size_is_not_another_graph():
    model = make()
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter, dynamic=True)
    for batch in (3, 5, 8, 13):
        x = torch.randn(batch, NET.sizes[0], dtype=torch.float64)
        for mine, true in zip(outcome(compiled, model, x), outcome(model, model, x), strict=True):
            torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-12)
    assert counter.frame_count == 1


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_model_sees_values_that_an_optimizer_moved():
    model = make()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(6, NET.sizes[0], dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = compiled(x)
    before.square().sum().backward()
    optimizer.step()
    assert not torch.equal(compiled(x), before)
    torch.testing.assert_close(compiled(x), model(x))


def test_grad_scaler_and_accumulation_in_float16():
    model, x = make(torch.float32), torch.randn(8, NET.sizes[0])
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for half in x.chunk(2):
        with torch.autocast("cpu", torch.float16):
            loss = model(half).float().square().mean() / 2
        scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    true = torch.autograd.grad(model(x).square().mean(), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), true, strict=True):
        assert parameter.grad.dtype == torch.float32
        torch.testing.assert_close(parameter.grad, gradient, rtol=0.02, atol=0.02 * float(gradient.abs().max()))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    scaler.step(optimizer)
    scaler.update()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    for parameter in model.parameters():
        parameter.grad.fill_(float("inf"))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    scaler._per_optimizer_states.clear()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_many_python_threads_share_a_layer():
    model = make()
    inputs = [torch.randn(50, NET.sizes[0], dtype=torch.float64) for _ in range(8)]
    expected = [outcome(model, model, x) for x in inputs]
    found = [None] * len(inputs)

    def work(k):
        for _ in range(5):
            found[k] = outcome(model, model, inputs[k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for mine, true in zip(found, expected, strict=True):
        assert all(map(torch.equal, mine, true))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_computes_the_same():
    layer = tt.SparseLinear(sp.random_array((400, 300), density=0.3, rng=np.random.default_rng(0)))
    x = torch.randn(500, 400)
    torch.set_num_threads(2)
    expected = layer(x).detach()
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking a process that has threads is what is tried
        child = os.fork()
    if child == 0:
        signal.alarm(30)  # a child that waits for threads which it does not have must not keep the suite waiting
        same = False
        try:
            with torch.no_grad():
                same = np.array_equal(layer(x).numpy(), expected.numpy())  # torch's own threads do not survive a fork
        finally:
            os.write(writer, b"y" if same else b"n")
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        answer = answers.read()
    os.waitpid(child, 0)
    assert answer == b"y"


def test_the_number_of_threads_is_torchs(monkeypatch):
    asked, product = [], _cpu.launch.product

    def noted(*args):
        asked.append(args[-1])
        return product(*args)

    monkeypatch.setattr(_cpu.launch, "product", noted)
    layer, before = tt.SparseLinear(sp.eye_array(4)), torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            layer(torch.ones(2, 4))
    finally:
        torch.set_num_threads(before)
    assert asked == [1, 3]


def test_optimizers_of_every_kind_move_the_values():
    x = torch.randn(8, NET.sizes[0], dtype=torch.float64)
    for make_optimizer in (
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=True),
        lambda p: torch.optim.SGD(p, 0.1, fused=True),
        lambda p: torch.optim.AdamW(p, 0.1, fused=True),
        lambda p: torch.optim.AdamW(p, 0.1, foreach=True, amsgrad=True),
        lambda p: torch.optim.RMSprop(p, 0.1, centered=True),
        lambda p: torch.optim.Adagrad(p, 0.1),
        lambda p: torch.optim.LBFGS(p, 0.1, max_iter=2),
    ):
        model = make()
        before, optimizer = [p.detach().clone() for p in model.parameters()], make_optimizer(model.parameters())

        def loss(model: nn.Module = model, optimizer=optimizer):
            optimizer.zero_grad()
            value = model(x).square().mean()
            value.backward()
            return value

        first = float(loss().detach())
        optimizer.step(loss)
        assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert np.isfinite(first)
