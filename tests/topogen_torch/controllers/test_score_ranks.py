"""Two processes with half a batch each score as one process with the whole batch."""

import os
import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.functional import cross_entropy

import topogen as tg
import topogen_torch as tt

RANKS = 2

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")


def scores(rank=None):
    torch.manual_seed(0)
    net = tg.generate(tg.ErdosRenyi(sizes=[6, 5, 3], density=0.6), rng=0)
    model = tt.sparse_mlp(net, activation=torch.nn.Tanh, dtype=torch.float64)
    x, target = torch.randn(10, 6, dtype=torch.float64), torch.randint(3, (10,))
    if rank is not None:
        x, target = x.chunk(RANKS)[rank], target.chunk(RANKS)[rank]

    def loss(model):
        return cross_entropy(model(x), target)

    def one(model, sample):
        return cross_entropy(model(sample[0][None]), sample[1][None])

    return {
        "snip": tt.snip_scores(model, loss),
        "grasp": tt.grasp_scores(model, loss),
        "fisher": tt.fisher_diagonal(model, one, zip(x, target, strict=True)),
        "hutchinson": tt.hutchinson_diagonal(model, loss, rng=0, draws=3),
    }


def enter(rank, folder):
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", next(n for _, n in socket.if_nameindex() if n.startswith("lo")))
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=60))
    try:
        torch.save(scores(rank), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def test_ranks_score_alike_and_as_one_process(tmp_path):
    mp.spawn(enter, args=(str(tmp_path),), nprocs=RANKS)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(RANKS))
    for method, alone in scores().items():
        for name, own in alone.items():
            assert torch.equal(first[method][name], second[method][name])
            torch.testing.assert_close(first[method][name], own, rtol=1e-10, atol=1e-14)
