"""The training loop: one screen, and every run of it can be stopped anywhere and resumed exactly.

Shapes: N images, F features, B images of one step on this process.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import topogen as tg
from topogen import checks
from topogen.errors import SpecError, TopogenError
from topogen_torch._training._checkpoint import load_checkpoint, save_checkpoint
from topogen_torch.data import DataSet

__all__ = ["Epoch", "evaluate", "train"]

# What an epoch's draws belong to, below the seed; the numbers 0..99 are the core's. Part of every result: never change.
_EPOCH = 100


@dataclass(frozen=True, slots=True)
class Epoch:
    """What is known after an epoch.

    Attributes
    ----------
    epoch : int
        Counted from 1.
    lr : float
        Learning rate of its last step.
    train_loss, train_accuracy : float
        Mean over the epoch, each image judged before the step that learned from it; accuracy in [0, 1].
    test_loss, test_accuracy : float
        Mean over the test images after the epoch.
    seconds : float
        Time of its training steps, evaluation and checkpoint not included.
    """

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float


@dataclass(slots=True)
class _Progress:
    """How far a run has come: all that a checkpoint holds besides model and optimizer."""

    step: int = 0
    loss: float = 0.0  # sums of the running epoch, on this process
    hits: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


def train(
    model: nn.Module,
    data: DataSet,
    *,
    epochs: int,
    batch_size: int = 100,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    seed: int = 0,
    fabric: Fabric | None = None,
    checkpoint: Path | None = None,
    on_step: Callable[[int, int, float, float], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> list[Epoch]:
    """Train a classifier in place: SGD with momentum, the learning rate following half a cosine down to 0.

    Step t of T has the learning rate lr (1 + cos(pi t / T)) / 2. The loss is the cross-entropy of the model's outputs,
    taken as logits: a rectifier behind the last layer would cut their gradient.

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
    lr : float > 0
    momentum : float in [0, 1]
    weight_decay : float >= 0
        L2 penalty, on all parameters.
    seed : int >= 0
        Of the order of the images and of what the model itself draws (dropout). Both are derived from the seed and
        the epoch alone. How the model is initialised is the caller's.
    fabric : lightning_fabric.Fabric, optional
        Device, precision and processes, launched already. By default one process on the CPU. Of several processes
        each takes its slice of every batch; the gradient is that of the whole batch.
    checkpoint : Path, optional
        Written after every epoch, and after the current step on Ctrl-C, which then raises KeyboardInterrupt; a second
        Ctrl-C does not wait. Where the file exists the run continues from it, and ends as if it had never stopped:
        in one process on a CPU, with the same number of threads, bit for bit.
    on_step, on_epoch : callable, optional
        ``on_step(step, steps, loss, accuracy)`` with the running means of the epoch; ``on_epoch(epoch)``, which is
        called for resumed epochs too.

    Returns
    -------
    list of Epoch
        All of them, those before a resumption included.

    Raises
    ------
    SpecError
        If an argument is out of range, the model has not one output a class, or the checkpoint was made with other
        settings, data or another model.
    FormatError
        If the checkpoint is damaged or foreign.
    TopogenError
        If the loss is no longer finite.
    """
    n_train = len(checks.instance(data, "data", "train", DataSet).train_y)
    settings = {
        "epochs": checks.integer(epochs, "epochs", "train", low=1),
        "batch_size": checks.integer(batch_size, "batch_size", "train", low=1, high=n_train),
        "lr": checks.real(lr, "lr", "train", open_low=True),
        "momentum": checks.real(momentum, "momentum", "train", high=1.0),
        "weight_decay": checks.real(weight_decay, "weight_decay", "train"),
        "seed": checks.integer(seed, "seed", "train", low=0),
    }
    identity = settings | _description(model, data) if checkpoint else {}
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    forward, stepper = fabric.setup(model, optimizer)
    train_x, train_y, test_x, test_y = (
        torch.from_numpy(array).to(fabric.device) for array in (data.train_x, data.train_y, data.test_x, data.test_y)
    )
    _check_outputs(forward, train_x[:1], len(data.classes))
    progress = _Progress()
    if checkpoint and checkpoint.exists():
        progress = _resume(load_checkpoint(checkpoint, identity), model, optimizer, fabric)
        for row in progress.history if on_epoch else ():
            on_epoch(Epoch(**row))  # pyright: ignore[reportOptionalCall]

    steps_per_epoch = math.ceil(n_train / batch_size)
    steps, first = epochs * steps_per_epoch, progress.step
    order = noise = np.empty(0, np.int64)
    with _Interrupt(enabled=checkpoint is not None) as interrupt, _own_randomness(fabric.device) as reseed:
        for step in range(first, steps):
            epoch, i = divmod(step, steps_per_epoch)
            if i == 0 or step == first:
                order, noise = _draws(seed, epoch, n_train, steps_per_epoch)
                forward.train()
            start = time.perf_counter()
            batch = order[i * batch_size : (i + 1) * batch_size]
            rate = lr * (1 + math.cos(math.pi * step / steps)) / 2
            for group in optimizer.param_groups:
                group["lr"] = rate
            reseed(int(noise[i]) + fabric.global_rank)
            chosen = torch.from_numpy(batch[fabric.global_rank :: fabric.world_size]).to(fabric.device)
            y_B = train_y[chosen]
            logits = forward(train_x[chosen])
            loss = cross_entropy(logits, y_B, reduction="sum")
            stepper.zero_grad()
            # processes average their gradients: each gives its part of the batch's mean, times their number
            fabric.backward(loss * (fabric.world_size / len(batch)))
            stepper.step()
            progress.step = step + 1
            progress.loss += _finite(loss.item(), epoch, rate)
            progress.hits += int((logits.argmax(1) == y_B).sum())
            progress.seconds += time.perf_counter() - start
            if on_step:
                seen = (i * batch_size + len(batch)) / fabric.world_size
                on_step(progress.step, steps, progress.loss / seen, progress.hits / seen)

            stop, epoch_ends = _any(fabric, interrupt.requested), i == steps_per_epoch - 1
            if epoch_ends:
                loss_sum, hits = _summed(fabric, progress.loss, progress.hits)
                tested = evaluate(forward, test_x, test_y, fabric=fabric)
                row = Epoch(epoch + 1, rate, loss_sum / n_train, hits / n_train, *tested, progress.seconds)
                progress = _Progress(step=progress.step, history=[*progress.history, asdict(row)])
                if on_epoch:
                    on_epoch(row)
            if checkpoint and (epoch_ends or stop):
                _save(checkpoint, identity, progress, model, optimizer, fabric)
            if stop:
                raise KeyboardInterrupt
    return [Epoch(**row) for row in progress.history]


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


def _draws(seed: int, epoch: int, n: int, steps: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the order of the images in an epoch and a seed for each of its steps, from seed and epoch alone."""
    rng = tg.stream(np.random.SeedSequence(seed), _EPOCH, epoch)
    return rng.permutation(n), rng.integers(2**62, size=steps)


def _description(model: nn.Module, data: DataSet) -> dict[str, Any]:
    """Return what a checkpoint must agree with: the data, and name, type, shape and pattern of the model's tensors."""
    described: dict[str, Any] = {"data": f"{data.name} {data.fingerprint()[:16]}"}
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            described[name] = f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
            if name.endswith("pattern_hash"):
                described[name] = bytes(tensor.cpu().contiguous().view(torch.uint8).tolist()).hex()[:16]
    return described


def _save(
    path: Path, identity: dict[str, Any], progress: _Progress, model: nn.Module, optimizer: Any, fabric: Fabric
) -> None:
    loss, hits = _summed(fabric, progress.loss, progress.hits)
    if fabric.is_global_zero:
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "progress": asdict(progress) | {"loss": loss, "hits": int(hits)},
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "precision": fabric.strategy.precision.state_dict(),  # the loss scale of 16-bit training
        }
        save_checkpoint(path, identity, state)
    fabric.barrier()


def _resume(state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer, fabric: Fabric) -> _Progress:
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    fabric.strategy.precision.load_state_dict(state["precision"])
    progress = _Progress(**state["progress"])
    if not fabric.is_global_zero:  # the sums of all processes go on in the first one
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


@contextlib.contextmanager
def _own_randomness(device: torch.device) -> Iterator[Callable[[int], None]]:
    """Yield a function that seeds torch's generators; on leaving they are as the caller left them."""
    cuda = [torch.cuda.default_generators[device.index or 0]] if device.type == "cuda" else []
    generators = [torch.default_generator, *cuda]

    def reseed(seed: int) -> None:  # torch.manual_seed would do it too, at a hundred times the cost
        for generator in generators:
            generator.manual_seed(seed)

    with torch.random.fork_rng(devices=[device] if cuda else []):
        yield reseed


class _Interrupt:
    """The first Ctrl-C becomes a request, so that the running step is completed; the second one aborts at once."""

    def __init__(self, *, enabled: bool) -> None:
        self.requested = False
        # Python lets only the main thread handle signals; a process told to ignore Ctrl-C goes on ignoring it
        self._enabled = (
            enabled
            and threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
        )

    def __enter__(self) -> _Interrupt:
        if self._enabled:
            self._previous = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        if self._enabled:
            signal.signal(signal.SIGINT, self._previous)

    def _request(self, *_: object) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
