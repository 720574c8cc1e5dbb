"""The training loop: one screen, and every run of it can be stopped anywhere and resumed exactly.

Shapes: N images, F features, B images of one step on this process.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from topogen import checks
from topogen.errors import FormatError, SpecError, TopogenError
from topogen_torch._training._checkpoint import load_checkpoint, save_checkpoint
from topogen_torch._training._descent import check_schedule, make_optimizer, rate_at
from topogen_torch._training._epoch import Epoch, LayerState, layer_states
from topogen_torch._training._exact import Interrupt, draws, own_randomness
from topogen_torch._training._rounds import Rounds
from topogen_torch.controllers import Controller, LotteryTicket
from topogen_torch.data import DataSet

__all__ = ["Epoch", "Method", "evaluate", "train"]

Method = Callable[[nn.Module, Optimizer, int], Controller]
"""Builds a controller from the model, its optimizer and the number of steps that the run will have."""


@dataclass(slots=True)
class _Progress:
    """How far a run has come: all that a checkpoint holds besides model, optimizer and controller."""

    step: int = 0
    loss: float = 0.0  # sums of the running epoch, on this process
    hits: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Run:
    """What a run changes, and what its checkpoints hold."""

    model: nn.Module
    optimizer: Optimizer
    controller: Controller | None
    fabric: Fabric
    forward: Any  # the model as Fabric wraps it
    stepped: bool = True  # whether the optimizer has, in this step: a loss scale skips steps that overflow

    def __post_init__(self) -> None:
        self.optimizer.register_step_post_hook(lambda *_: setattr(self, "stepped", True))

    def rewrap(self) -> None:
        """Wrap the model anew: several processes exchange gradients through buckets of the shapes it had before."""
        if self.fabric.world_size > 1:
            self.forward = nn.Identity()  # the old wrapper's hooks go with it
            gc.collect()
            self.forward = self.fabric.setup_module(self.model)


def train(
    model: nn.Module,
    data: DataSet,
    *,
    epochs: int,
    batch_size: int = 100,
    accumulate: int = 1,
    optimizer: str = "sgd",
    lr: float = 0.1,
    schedule: str | Mapping[int, float] = "cosine",
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    method: Method | None = None,
    seed: int = 0,
    fabric: Fabric | None = None,
    checkpoint: Path | None = None,
    on_step: Callable[[int, int, float, float], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> list[Epoch]:
    """Train a classifier in place; a method may change its connections while it learns.

    The loss is the cross-entropy of the model's outputs, taken as logits: a rectifier behind the last layer would cut
    their gradient.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (B, F) to (B, classes).
    data : DataSet
        Held on the device as a whole.
    epochs : int >= 1
        How often every training image is seen.
    batch_size : int in [1, N]
        Images a step, over all processes; the last step of an epoch takes what is left.
    accumulate : int >= 1
        In how many parts a process takes its share of a batch, to use less memory; the gradient is that of the whole.
    optimizer : {"sgd", "nesterov", "adam", "adamw"}
    lr : float > 0
        Learning rate of the first step.
    schedule : {"cosine", "linear", "constant"} or mapping
        Step t of T, counted from 0, has the learning rate lr (1 + cos(pi t / T)) / 2, lr (1 - t / T) or lr. A mapping
        {epochs: factor} multiplies it after so many epochs.
    momentum : float in [0, 1]
        Of "adam" and "adamw" the first beta, below 1.
    weight_decay : float >= 0
        On all parameters: L2 penalty; of "adamw" decoupled.
    method : callable, optional
        ``method(model, optimizer, steps)`` returns the controller whose ``step()`` is called after the optimizer's.
        Where it is a `LotteryTicket` of ``round_steps=steps``, `epochs` are those of its first round; in the others
        images, random numbers and learning rate go back with it.
    seed : int >= 0
        Of the order of the images and of what the model itself draws (dropout). Both are derived from the seed and
        the epoch alone. How the model is initialised is the caller's.
    fabric : lightning_fabric.Fabric, optional
        Device, precision and processes, launched already. By default one process on the CPU. Of several processes
        each takes its slice of every batch; the gradient is that of the whole batch.
    checkpoint : Path, optional
        Written after every epoch, and after the current step on Ctrl-C, which then raises KeyboardInterrupt; a second
        Ctrl-C does not wait. Where the file exists the run continues from it, and ends as if it had never stopped:
        in one process on a CPU, with the same number of threads, bit for bit. The connections come from it as well.
    on_step, on_epoch : callable, optional
        ``on_step(step, steps, loss, accuracy)`` with the running means of the epoch; ``on_epoch(epoch)``, which is
        called for resumed epochs too.

    Returns
    -------
    list of Epoch
        All of them, those before a resumption included. At the end of a ticket's round the model is judged before it
        is pruned and goes back.

    Raises
    ------
    SpecError
        If an argument is out of range, the model has not one output a class, or the checkpoint was made with other
        settings, data, another model or another method; a run with a method never goes on without its state.
    FormatError
        If the checkpoint is damaged or foreign, or lacks the method's state.
    TopogenError
        If the loss is no longer finite, or the method meets a score that is NaN.
    """
    n_train = len(checks.instance(data, "data", "train", DataSet).train_y)
    settings = {
        "epochs": checks.integer(epochs, "epochs", "train", low=1),
        "batch_size": checks.integer(batch_size, "batch_size", "train", low=1, high=n_train),
        "accumulate": checks.integer(accumulate, "accumulate", "train", low=1),
        "optimizer": optimizer,
        "lr": checks.real(lr, "lr", "train", open_low=True),
        "schedule": check_schedule(schedule, "schedule", "train"),
        "momentum": checks.real(momentum, "momentum", "train", high=1.0),
        "weight_decay": checks.real(weight_decay, "weight_decay", "train"),
        "seed": checks.integer(seed, "seed", "train", low=0),
    }
    descent = make_optimizer(
        optimizer, model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, owner="train"
    )
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    forward, stepper = fabric.setup(model, descent)
    train_x, train_y, test_x, test_y = (
        torch.from_numpy(array).to(fabric.device) for array in (data.train_x, data.train_y, data.test_x, data.test_y)
    )
    _check_outputs(forward, train_x[:1], len(data.classes))
    steps_per_epoch = math.ceil(n_train / batch_size)
    steps = epochs * steps_per_epoch
    run = _Run(model, descent, method(model, descent, steps) if method else None, fabric, forward)
    rounds = Rounds.of(run.controller, steps)
    del forward  # only the run has it, so that it can be replaced
    identity = settings | _description(run, data) if checkpoint else {}
    progress = _Progress()
    if checkpoint and checkpoint.exists():
        progress = _resume(load_checkpoint(checkpoint, identity), run)
        for row in progress.history if on_epoch else ():
            on_epoch(Epoch.from_dict(row))  # pyright: ignore[reportOptionalCall]

    drawn = -1
    order = noise = np.empty(0, np.int64)
    with Interrupt(enabled=checkpoint is not None) as interrupt, own_randomness(fabric.device) as reseed:
        for step in range(progress.step, rounds.steps):
            position = rounds.position(step)
            epoch, i = divmod(position, steps_per_epoch)
            if epoch != drawn or i == 0:
                order, noise = draws(seed, epoch, n_train, steps_per_epoch)
                drawn = epoch
                run.forward.train()
            start = time.perf_counter()
            batch = order[i * batch_size : (i + 1) * batch_size]
            rate = rate_at(schedule, lr, position, steps, steps_per_epoch)
            for group in descent.param_groups:
                group["lr"] = rate
            reseed(int(noise[i]) + fabric.global_rank)
            mine = torch.from_numpy(batch[fabric.global_rank :: fabric.world_size]).to(fabric.device)
            stepper.zero_grad()
            loss, hits = _backward(run, train_x[mine], train_y[mine], len(batch), accumulate)
            progress.loss += _finite(loss, len(progress.history), rate)
            progress.hits += hits
            run.stepped = False
            stepper.step()
            epoch_ends, seen = i == steps_per_epoch - 1, i * batch_size + len(batch)
            seen -= max(0, i - rounds.done(step)) * batch_size  # a later round may begin within an epoch
            judged = _judge(run, test_x, test_y) if rounds.ends(step) else None
            _rewire(run)
            progress.step = step + 1
            progress.seconds += time.perf_counter() - start - (judged.seconds if judged else 0.0)
            if on_step:
                mine_seen = seen / fabric.world_size
                on_step(progress.step, rounds.steps, progress.loss / mine_seen, progress.hits / mine_seen)

            stop = _any(fabric, interrupt.requested)
            if epoch_ends:
                loss_sum, hit_sum = _summed(fabric, progress.loss, progress.hits)
                number, (_, tested, layers) = len(progress.history) + 1, judged or _judge(run, test_x, test_y)
                row = Epoch(number, rate, loss_sum / seen, hit_sum / seen, *tested, progress.seconds, layers)
                progress = _Progress(step=progress.step, history=[*progress.history, row.to_dict()])
                if on_epoch:
                    on_epoch(row)
            if checkpoint and (epoch_ends or stop):
                _save(checkpoint, identity, progress, run)
            if stop:
                raise KeyboardInterrupt
    return [Epoch.from_dict(row) for row in progress.history]


class _Judged(NamedTuple):
    """What is known of a model after an epoch."""

    seconds: float  # that finding it out took
    tested: tuple[float, float]
    layers: tuple[LayerState, ...]


def _judge(run: _Run, test_x: Tensor, test_y: Tensor) -> _Judged:
    start = time.perf_counter()
    tested = evaluate(run.forward, test_x, test_y, fabric=run.fabric)
    layers = layer_states(run.model, run.controller)
    return _Judged(time.perf_counter() - start, tested, layers)


@torch.no_grad()
def evaluate(
    model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 1000, fabric: Fabric | None = None
) -> tuple[float, float]:
    """Return mean cross-entropy and accuracy (in [0, 1]) of a classifier, each process of `fabric` judging its slice.

    Parameters
    ----------
    model : torch.nn.Module
        Maps (B, F) to (B, classes); judged in evaluation mode, and left in the mode that it was in.
    x : Tensor, shape (N, F)
    y : Tensor, shape (N,), dtype int64
        On the model's device.
    batch_size : int
        Images at a time, which bounds the memory and changes nothing else but rounding.
    fabric : lightning_fabric.Fabric, optional
    """
    rank, world_size = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
    was_training = model.training
    model.eval()
    loss, hits = 0.0, 0
    mine_x, mine_y = x[rank::world_size], y[rank::world_size]
    for x_BF, y_B in zip(mine_x.split(batch_size), mine_y.split(batch_size), strict=True):
        logits = model(x_BF)
        loss += cross_entropy(logits, y_B, reduction="sum").item()
        hits += int((logits.argmax(1) == y_B).sum())
    model.train(was_training)
    loss, hits = _summed(fabric, loss, hits) if fabric else (loss, hits)
    return loss / len(y), hits / len(y)


def _backward(run: _Run, x_BF: Tensor, y_B: Tensor, batch: int, accumulate: int) -> tuple[float, int]:
    """Add up the gradient of the batch's mean loss, part by part; return the summed loss and the hits."""
    loss, hits = 0.0, 0
    # processes average their gradients: each gives its part of the batch's mean, times their number
    weight = run.fabric.world_size / batch
    size = max(1, math.ceil(len(y_B) / accumulate))
    ends = range(size, max(len(y_B), 1) + size, size)
    for end in ends:
        part = slice(end - size, end)
        with run.fabric.no_backward_sync(run.forward, enabled=end < ends[-1]):
            logits = run.forward(x_BF[part])
            part_loss = cross_entropy(logits, y_B[part], reduction="sum")
            run.fabric.backward(part_loss * weight)
        loss += part_loss.item()
        hits += int((logits.argmax(1) == y_B[part]).sum())
    return loss, hits


def _rewire(run: _Run) -> None:
    """Let the method take its step."""
    if run.controller is None:
        return
    if not run.stepped and not isinstance(run.controller, LotteryTicket):  # that one counts the schedule's steps
        run.controller.forget()
        return
    before = [parameter.shape for parameter in run.model.parameters()]
    if run.controller.step() and before != [parameter.shape for parameter in run.model.parameters()]:
        run.rewrap()


def _description(run: _Run, data: DataSet) -> dict[str, Any]:
    """Return what a checkpoint must agree with: the data, the method, and the model's tensors.

    Of these name, type, shape and pattern; where a method changes the pattern, it comes from the checkpoint.
    """
    described: dict[str, Any] = {"method": "none", "data": f"{data.name} {data.fingerprint()[:16]}"}
    free: set[str] = set()
    if run.controller is not None:
        state = run.controller.state_dict()
        described["method"] = state["method"]
        described |= {f"method's {key}": state[key] for key in ("settings", "groups", "seed")}
        described["method's layers"] = list(state["layers"])
        prefixes = ("" if name == "(model)" else f"{name}." for name in state["layers"])
        free = {prefix + name for prefix in prefixes for name in ("values", "indices", "pattern_hash")}
    for name, tensor in run.model.state_dict().items():
        if isinstance(tensor, Tensor) and name not in free:
            described[name] = f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
            if name.endswith("pattern_hash"):
                described[name] = bytes(tensor.cpu().contiguous().view(torch.uint8).tolist()).hex()[:16]
    return described


def _save(path: Path, identity: dict[str, Any], progress: _Progress, run: _Run) -> None:
    loss, hits = _summed(run.fabric, progress.loss, progress.hits)
    if run.fabric.is_global_zero:
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "progress": asdict(progress) | {"loss": loss, "hits": int(hits)},
            "model": run.model.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "precision": run.fabric.strategy.precision.state_dict(),  # the loss scale of 16-bit training
        }
        if run.controller is not None:
            state["controller"] = run.controller.state_dict()
        save_checkpoint(path, identity, state)
    run.fabric.barrier()


def _resume(state: dict[str, Any], run: _Run) -> _Progress:
    """Load model, optimizer and controller, in this order: each has the shapes and patterns of the one before."""
    if run.controller is not None and "controller" not in state:
        raise FormatError("The checkpoint lacks the state of its method, without which the run would begin it anew.")
    before = [parameter.shape for parameter in run.model.parameters()]
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    if run.controller is not None:
        run.controller.load_state_dict(state["controller"])
    if before != [parameter.shape for parameter in run.model.parameters()]:
        run.rewrap()
    run.fabric.strategy.precision.load_state_dict(state["precision"])
    progress = _Progress(**state["progress"])
    if not run.fabric.is_global_zero:  # the sums of all processes go on in the first one
        progress.loss, progress.hits = 0.0, 0
    return progress


def _check_outputs(model: nn.Module, x_BF: Tensor, classes: int) -> None:
    was_training = model.training
    with torch.no_grad():
        shape = tuple(model.eval()(x_BF).shape)
    model.train(was_training)
    if shape != (len(x_BF), classes):
        raise SpecError(
            f"The 'model' parameter of train must map (B, {x_BF.shape[1]}) to (B, {classes}), one logit a class. "
            f"Got outputs of shape ({', '.join(('B', *map(str, shape[1:])))})."
        )


def _finite(loss: float, epoch: int, rate: float) -> float:
    if math.isfinite(loss):
        return loss
    raise TopogenError(
        f"The training loss is {loss} in epoch {epoch + 1}. The learning rate, {rate:.3g} now, may be too high: lower "
        "it; 16-bit floats may overflow: use 32; the initial weights may be too large or not finite: draw them anew."
    )


def _summed(fabric: Fabric, *numbers: float) -> list[float]:
    """Return each number summed over all processes."""
    if fabric.world_size == 1:
        return list(numbers)
    summed = fabric.all_reduce(torch.tensor(numbers, dtype=torch.float64, device=fabric.device), reduce_op="sum")
    return cast(Tensor, summed).tolist()


def _any(fabric: Fabric, wish: bool) -> bool:
    """Whether any process has the wish, so that all of them stop after the same step."""
    return _summed(fabric, wish)[0] > 0
