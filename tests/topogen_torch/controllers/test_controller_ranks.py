"""Two processes: what they drop and grow is what one process would, and whatever makes them differ stops both."""

import os
import re
import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import topogen as tg
import topogen_torch as tt
from topogen.errors import SpecError, TopogenError
from topogen_torch.controllers.redistribution import mean_gradient

RANKS = 2
METHODS = {
    "SET": lambda model, optimizer: tt.SET(model, optimizer, rng=5, update_every=2),
    "RigL": lambda model, optimizer: tt.RigL(model, optimizer, end_step=99, update_every=2),
    "SNFS": lambda model, optimizer: tt.SNFS(
        model, optimizer, end_step=99, update_every=2, window=2, redistribute=mean_gradient
    ),
    "GradualMagnitude": lambda model, optimizer: tt.GradualMagnitude(
        model, optimizer, density=0.1, begin_step=0, end_step=6, update_every=2
    ),
}

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")


def model_of():
    torch.manual_seed(0)
    net = tg.generate(tg.ErdosRenyi(sizes=[12, 9, 5], density=0.4), rng=0)
    return tt.sparse_mlp(net, dtype=torch.float64)


def train(method, rank=None):
    """Seven steps with the whole batch, or with half of it and gradients averaged by DDP, made anew where it must."""
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    ctl = METHODS[method](model, optimizer)
    called = model if rank is None else DistributedDataParallel(model)
    for step in range(7):
        x = torch.randn(8, 12, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.zero_grad()
        loss = called(x if rank is None else x.chunk(RANKS)[rank]).square().sum(1).mean()
        loss.backward()
        optimizer.step()
        if ctl.step() and rank is not None and method in ("SNFS", "GradualMagnitude"):
            called = DistributedDataParallel(model)
    return model.state_dict()


def said(action):
    try:
        action()
    except (TopogenError, SpecError) as error:
        return str(error)
    return "nothing"


def planted(rank):
    """One rank drops and grows elsewhere: in the very step both stop, and both know both hashes."""
    model = model_of()
    if rank:
        with torch.no_grad():
            model[2].values.neg_()
            model[2].values[:3] = 9.0
    before = [layer.pattern_hash.clone() for layer in (model[0], model[2])]
    ctl = tt.SET(model, None, rng=0, update_every=1)
    sentence = said(ctl.step)
    changed = [not torch.equal(a, layer.pattern_hash) for a, layer in zip(before, (model[0], model[2]), strict=True)]
    return {"said": sentence, "changed": changed, "hash": bytes(model[2].pattern_hash.tolist()).hex()[:12]}


def sharded():
    model = model_of()
    layer, mesh = model[0], init_device_mesh("cpu", (RANKS,))
    ctl = tt.SET(model, None, rng=0, update_every=1)
    fully_shard(layer, mesh=mesh)
    return [said(lambda: tt.SET(model, None, rng=0, update_every=1)), said(ctl.step)]


def unwrapped(rank):
    """A wrapper from before a pruning is called again."""
    model = model_of()
    wrapper, other = DistributedDataParallel(model), DistributedDataParallel(model_of())
    tt.OneShot(model, density=0.1).step()
    x = torch.ones(2, 12, dtype=torch.float64)
    other(x).sum().backward()
    DistributedDataParallel(model)(x).sum().backward()
    return said(lambda: wrapper(x))


def everything(rank):
    return {
        "trained": {method: train(method, rank) for method in METHODS},
        "planted": planted(rank),
        "seed": said(lambda: tt.SET(model_of(), None, rng=rank, update_every=1)),
        "settings": said(lambda: tt.RigL(model_of(), None, end_step=9 + rank)),
        "sharded": sharded(),
        "unwrapped": unwrapped(rank),
    }


def enter(rank, folder):
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", next(n for _, n in socket.if_nameindex() if n.startswith("lo")))
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=60))
    try:
        torch.save(everything(rank), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(enter, args=(str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_rewire_as_one(found, method):
    alone = train(method)
    for rank in found:
        for name, tensor in alone.items():
            if tensor.is_floating_point():
                torch.testing.assert_close(rank["trained"][method][name], tensor, rtol=1e-9, atol=1e-12)
            else:
                assert torch.equal(rank["trained"][method][name], tensor), name


def test_a_rank_that_differs_stops_the_run_with_both_hashes(found):
    hashes = [rank["planted"]["hash"] for rank in found]
    assert hashes[0] != hashes[1]
    sentence = f"Every rank must have the same pattern in layer '2'. Rank 0 has {hashes[0]}, rank 1 has {hashes[1]}."
    assert [rank["planted"]["said"] for rank in found] == [sentence] * RANKS
    assert all(rank["planted"]["changed"][1] for rank in found)


@pytest.mark.parametrize(("what", "name"), [("seed", "seed of SET"), ("settings", "settings of RigL")])
def test_ranks_begin_alike(found, what, name):
    digest = "[0-9a-f]{12}"
    for rank in found:
        assert re.fullmatch(
            rf"Every rank must have the same {name}\. Rank 0 has ({digest}), rank 1 has (?!\1){digest}\.", rank[what]
        )


def test_sharded_layers_are_refused(found):
    sentence = (
        "FSDPSparseLinear '0' is sharded over processes and cannot be rewired: prune and regrow before sharding, or "
        "train it replicated, as DistributedDataParallel does."
    )
    for rank in found:
        assert rank["sharded"] == [sentence] * 2


def test_an_old_wrapper_refuses_to_be_called(found):
    for rank in found:
        assert rank["unwrapped"].startswith(
            "A DistributedDataParallel must be made anew when the number of connections"
        )
