"""Run by `test_routed.py` in a process of its own, under Triton's interpreter: layers on a CPU that counts as a card.

Prints one JSON object: name -> the largest error, relative to the largest number, or whatever the test reads.
"""

import json
import tempfile
import warnings

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

import topogen as tg
import topogen_torch as tt
from topogen_torch._gpu import _interpreted
from topogen_torch._ops import _card_blocks

warnings.simplefilter("error")
torch.manual_seed(0)
RNG = np.random.default_rng(0)
BLOCKS = np.array([[1, 0, 1], [0, 0, 0], [1, 1, 0]], bool)  # an empty row of blocks, and one block in the last column
RADIX = tg.generate(tg.RadixNet(systems=[[3, 2]]))
WIDE = tg.generate(tg.RadixNet(systems=[[2, 2]]))[1]
CHANNELS = np.kron([[1, 0], [1, 1], [0, 0]], np.ones((16, 16)))
LAYERS = {
    "blocks": (lambda: tt.BlockSparseLinear(BLOCKS, 16), (20, 48)),
    "blocks, 3 dimensions, no bias": (lambda: tt.BlockSparseLinear(BLOCKS, 16, bias=False), (2, 5, 48)),
    "circulant": (lambda: tt.BlockSparseLinear(RADIX[0], 16), (17, 96)),
    "circulant, last radix": (lambda: tt.BlockSparseLinear(RADIX[1], 16), (17, 96)),
    "connections": (lambda: tt.SparseLinear(RNG.random((30, 40)) < 0.08), (20, 30)),
    "connections, one sample": (lambda: tt.SparseLinear(RNG.random((30, 40)) < 0.08), (1, 30)),
    "connections, many shared": (lambda: tt.SparseLinear(1 - np.eye(220)), (4, 220)),
    "no connections": (lambda: tt.SparseLinear(np.zeros((3, 4))), (5, 3)),
    "no blocks": (lambda: tt.BlockSparseLinear(np.zeros((2, 3)), 16), (5, 32)),
    "images": (lambda: tt.SparseConv2d(CHANNELS, (3, 2), padding=1, stride=(2, 1), dilation=(1, 2)), (2, 48, 7, 6)),
    "images, offset by offset": (lambda: tt.SparseConv2d([CHANNELS, CHANNELS[::-1]], (1, 2)), (48, 3, 4)),
    "signals": (lambda: tt.SparseConv1d(CHANNELS, 3, padding=1, padding_mode="circular"), (2, 48, 5)),
    "attention": (lambda: tt.SparseMultiheadAttention(np.eye(16) + np.eye(16, k=3) > 0, 2), (3, 2, 16)),
    "lstm": (lambda: tt.SparseLSTM([(np.eye(8, 16, k=2), np.eye(16, k=1))]), (4, 3, 8)),
}


def error(found, true):
    found, true = found.detach(), true.detach()
    if not true.numel():
        return float(found.shape != true.shape)
    return float((found - true).abs().max() / true.abs().max().clamp(min=0.1))  # some are 0 but for rounding


def twin(name):
    """A new layer with the weights of the one that the CPU's kernels computed."""
    layer = LAYERS[name][0]()
    layer.load_state_dict(STATES[name])
    return layer


def passes(layer, x):
    """The output and every gradient."""
    x = x.clone().requires_grad_()
    y = layer(x, x, x, need_weights=False) if isinstance(layer, tt.SparseMultiheadAttention) else layer(x)
    y = y[0] if isinstance(y, tuple) else y
    return y, *torch.autograd.grad(y, [x, *layer.parameters()], torch.linspace(-1, 1, y.numel()).view(y.shape))


def train(layers, x, target):
    """The losses of 20 steps of a network of two layers."""
    model = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1])
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.01), []
    for _ in range(20):
        loss = torch.nn.functional.mse_loss(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def pair(kind):
    if kind == "blocks":
        return [tt.BlockSparseLinear(np.eye(2), 16), tt.BlockSparseLinear(np.eye(2)[::-1], 16)]
    return [tt.SparseLinear(np.eye(32, k=1) + np.eye(32, k=-2)), tt.SparseLinear(np.eye(32) + np.eye(32, k=5))]


TRUE, STATES, TRAINED = {}, {}, {}
for name, (make, shape) in LAYERS.items():
    layer = make()
    x = torch.randn(shape)
    TRUE[name] = x, passes(layer, x)
    STATES[name] = layer.state_dict()
inputs, target = torch.randn(16, 32), torch.randn(16, 32)
for kind in ("blocks", "connections"):
    layers = pair(kind)
    states = [{key: part.clone() for key, part in layer.state_dict().items()} for layer in layers]
    TRAINED[kind] = states, train(layers, inputs, target)

_interpreted.take_cpu_as_card()
kernels, chosen = {}, _card_blocks._kernel


def noted(*args):
    """Write down what is chosen while a layer is computed."""
    kernels.setdefault(name, set()).add(chosen(*args))
    return chosen(*args)


_card_blocks._kernel = noted
results = {}
with tt.never_dense():
    for name, (x, true) in TRUE.items():
        found = passes(twin(name), x)
        results[name] = max(error(mine, other) for mine, other in zip(found, true, strict=True))
    for kind, (states, losses) in TRAINED.items():
        name, layers = f"training, {kind}", pair(kind)
        for layer, state in zip(layers, states, strict=True):
            layer.load_state_dict(state)
        results[name] = error(train(layers, inputs, target), losses)

name = "dense above the break-even"
x, true = TRUE["blocks"]
results["dense above the break-even"] = max(
    error(mine, other) for mine, other in zip(passes(twin("blocks"), x), true, strict=True)
)
layer = twin("blocks")
parts = layer.indptr, layer.indices, layer.order, layer.indptr_t, layer.indices_t, layer.permutation, layer.order_t
with tt.never_dense():
    name = "batched"
    _card_blocks.BATCHED_FROM, kept = 32, _card_blocks.BATCHED_FROM
    wide = tt.BlockSparseLinear(WIDE, 16)
    x = torch.randn(9, 64)
    results["batched"] = error(wide(x), x @ torch.from_numpy(wide.to_scipy().toarray()) + wide.bias)
    _card_blocks.BATCHED_FROM = kept

    name = "compiled"
    x, true = TRUE["blocks"]
    warnings.simplefilter("ignore")  # torch.compile's own
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    results["compiled"] = max(error(mine, other) for mine, other in zip(passes(compiled, x), true, strict=True))
    operands = torch.randn(20, 48), layer.values.detach(), layer.bias.detach()
    dy = torch.randn(20, 48)
    torch.library.opcheck(torch.ops.topogen.card_blocks.default, (*operands, *parts, list(layer._facts)))
    torch.library.opcheck(
        torch.ops.topogen.card_blocks_backward.default,
        (dy, *operands[:2], *parts, list(layer._facts), [True, True, False]),
    )
    warnings.simplefilter("error")
    with torch.autocast("cpu", torch.float16):
        y = layer(x)
    y.sum().backward()
    results["autocast"] = [str(y.dtype), str(layer.values.grad.dtype), error(y.float(), true[0])]

    with tempfile.NamedTemporaryFile() as file:
        torch.distributed.init_process_group("gloo", init_method=f"file://{file.name}", rank=0, world_size=1)
        model = DistributedDataParallel(twin("blocks"))
        results["ddp"] = max(error(mine, other) for mine, other in zip(passes(model, x), true, strict=True))
        torch.distributed.destroy_process_group()

layer = twin("blocks")
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    layer.double()
    y = layer(x.double())
    layer(x.double())
results["float64"] = [str(each.message) for each in said]
results["float64, error"] = error(y.float(), true[0])
results["state"] = sorted(layer.state_dict())
results["facts"] = layer._facts
layer = twin("blocks")
tt.SET(layer, torch.optim.SGD(layer.parameters(), lr=0.1), rng=0, update_every=1, drop_fraction=0.5).step()
x = torch.randn(6, 48)
with tt.never_dense():
    results["rewired"] = error(layer(x), x @ torch.from_numpy(layer.to_scipy().toarray()) + layer.bias)
results["rewired, moved"] = bool((layer.block_pattern != twin("blocks").block_pattern).nnz)
results["kernels"] = {name: sorted(found) for name, found in kernels.items()}
print(json.dumps(results))
