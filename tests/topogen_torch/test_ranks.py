"""Two processes: sharded and replicated training equals training in one, and patterns that differ stop every rank."""

import os
import socket
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import topogen as tg
import topogen_torch as tt
from topogen.errors import TopogenError

RANKS = 2
NET = tg.generate(tg.RadixNet(systems=[[4, 4]], widths=[3, 2, 1]))
OTHER = tg.generate(tg.RadixNet(systems=[[4, 4]], widths=[3, 2, 1], shift=1))

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")


def run(work, folder: Path) -> list:
    """Call ``work(rank)`` in two processes that form a group; return what each of them returned."""
    mp.spawn(_enter, args=(work, str(folder)), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def _enter(rank: int, work, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS, timeout=timedelta(seconds=60)
    )
    try:
        torch.save(work(rank), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def _loopback() -> str:
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    return names[0] if names else ""


def model(net=NET):
    torch.manual_seed(0)
    return tt.sparse_mlp(net, dtype=torch.float64)


def batches(steps=4):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, NET.sizes[0], dtype=torch.float64, generator=generator) for _ in range(steps)]


def part(x, rank):
    return x.chunk(RANKS)[rank]


def train(net, batches_of):
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for x in batches_of:
        net(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def alone():
    net = model()
    train(net, batches())
    return net.state_dict()


def replicated(rank):
    net = DistributedDataParallel(model(), broadcast_buffers=False)
    tt.check_ranks(net)
    train(net, [part(x, rank) for x in batches()])
    return net.module.state_dict()


def sharded(rank):
    net = model()
    mesh = init_device_mesh("cpu", (RANKS,))
    for layer in net:
        if isinstance(layer, tt.SparseLinear):
            fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    tt.check_ranks(net)
    own = net[0].values
    train(net, [part(x, rank) for x in batches()])
    whole = StateDictOptions(full_state_dict=True)
    state = {k: v.clone() for k, v in get_model_state_dict(net, options=whole).items()}
    set_model_state_dict(net, model().state_dict(), options=whole)
    back = get_model_state_dict(net, options=whole)
    state["restored"] = torch.tensor(all(torch.equal(back[k], v) for k, v in model().state_dict().items()))
    state["one parameter"] = torch.tensor(net[0].values is own)
    wider = tt.sparse_mlp(tg.generate(tg.Dense(sizes=NET.sizes)), dtype=torch.float64)
    try:
        set_model_state_dict(net, wider.state_dict(), options=whole)
        state["refused"] = torch.tensor(False)
    except RuntimeError as error:
        state["refused"] = torch.tensor("a sharded layer keeps its number of entries, 384" in str(error))
    return state


def different(rank):
    messages = []
    for net in (model(OTHER if rank else NET), torch.nn.Sequential(*list(model())[: 1 + 2 * rank])):
        try:
            tt.check_ranks(net)
        except TopogenError as error:
            messages.append(str(error))
    return messages


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two processes saw; one pair does everything, since starting it takes longer than the work."""
    return run(everything, tmp_path_factory.mktemp("ranks"))


def everything(rank):
    return {"replicated": replicated(rank), "sharded": sharded(rank), "different": different(rank)}


@pytest.mark.parametrize("how", ["replicated", "sharded"])
def test_two_ranks_train_as_one(found, how):
    expected = alone()
    for rank in found:
        for name, tensor in expected.items():
            np.testing.assert_allclose(rank[how][name].numpy(), tensor.numpy(), rtol=1e-10, atol=1e-12, err_msg=name)


def test_a_sharded_layer_keeps_its_parameter_and_loads(found):
    for rank in found:
        assert {name: bool(rank["sharded"][name]) for name in ("one parameter", "restored", "refused")} == {
            "one parameter": True,
            "restored": True,
            "refused": True,
        }


def test_patterns_that_differ_stop_every_rank(found):
    hashes = [tg.pattern_hash(net[0])[:12] for net in (NET, OTHER)]
    for rank in found:
        assert rank["different"] == [
            f"Every rank must have the same pattern in layer '0'. Rank 0 has {hashes[0]}, rank 1 has {hashes[1]}.",
            "Every rank must have the same number of sparse layers. Rank 0 has 1, rank 1 has 2.",
        ]


def test_one_process_agrees_with_itself():
    tt.check_ranks(model())
