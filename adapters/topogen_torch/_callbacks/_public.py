"""What is public of the callbacks; the frameworks are imported when one is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import Callback
    from transformers import TrainerCallback

    from topogen_torch._callbacks._attached import Make

__all__ = ["lightning_callback", "transformers_callback"]


def lightning_callback(make: Make, *, optimizer: int = 0, name: str = "controller", by_layer: bool = True) -> Callback:
    """Return a callback for ``lightning.Trainer`` that prunes, or drops and grows, as a controller says.

    The controller steps once after each step that the optimizer takes, whatever the accumulation of gradients. Its
    state is in Lightning's checkpoints; a run that ``fit(ckpt_path=...)`` resumes goes on as if it had not been
    stopped.

    Parameters
    ----------
    make : callable
        ``make(model, optimizer)`` returns the controller; a callable with a third parameter that has no default gets
        the total number of the optimizer's steps too. It is called when training begins, with the ``LightningModule``.
    optimizer : int
        Which of the module's optimizers, where it has several.
    name : str
        Of the controller in checkpoints; must differ between the callbacks of a Trainer. One of your own is put before
        the names of the figures too, as in ``<name>/density``.
    by_layer : bool
        Whether the figures of each layer are logged, or only those of the model.

    Returns
    -------
    lightning.pytorch.Callback
        Its ``controller`` is None until training begins.

    Raises
    ------
    SpecError
        If a parameter is none of these. When training begins: if `make` returns no controller, or one with another
        optimizer; if it asks for a total number of steps that is not known; if a checkpoint to resume from has no state
        for the controller, or one of other patterns or settings.
    ModuleNotFoundError
        If Lightning is not installed.

    Notes
    -----
    The Trainer's loggers get figures of the layers that are controlled: ``density``, ``dead_neurons`` (outputs that no
    connection reaches) and ``explored`` (share of the places that were ever occupied), and of each layer these and
    ``survival`` (share of the first connections that are still there), as ``density/<layer>`` and so on. They are
    logged at the start, and whenever connections have changed.

    Examples
    --------
    >>> import topogen_torch as tt
    >>> callback = tt.lightning_callback(
    ...     lambda model, optimizer, total: tt.RigL(model, optimizer, end_step=int(0.75 * total), update_every=100)
    ... )
    >>> callback.state_key
    'topogen_torch.controller'
    """
    try:
        from topogen_torch._callbacks._lightning import ControllerCallback
    except ModuleNotFoundError as error:
        raise _missing(error, "lightning_callback", "lightning") from None
    return ControllerCallback(make, optimizer=optimizer, name=name, by_layer=by_layer)


def transformers_callback(make: Make, *, name: str = "controller", by_layer: bool = False) -> TrainerCallback:
    """Return a callback for ``transformers.Trainer`` that prunes, or drops and grows, as a controller says.

    The controller steps once after each step that the optimizer takes, whatever the accumulation of gradients. Its
    state is in the Trainer's checkpoints; a run that ``train(resume_from_checkpoint=...)`` resumes goes on as if it had
    not been stopped.

    Parameters
    ----------
    make : callable
        ``make(model, optimizer)`` returns the controller; a callable with a third parameter that has no default gets
        the total number of the optimizer's steps too. It is called when training begins.
    name : str
        Of the controller in checkpoints; must differ between the callbacks of a Trainer. One of your own is put before
        the names of the figures too, as in ``<name>/density``.
    by_layer : bool
        Whether the figures of each layer are logged, or only those of the model; the Trainer prints what it logs.

    Returns
    -------
    transformers.TrainerCallback
        Its ``controller`` is None until training begins.

    Raises
    ------
    SpecError
        If a parameter is none of these. When training begins: if `make` returns no controller, or one with another
        optimizer; if two callbacks have one name; if a checkpoint to resume from has no state for the controller, or
        one of other patterns or settings.
    ModuleNotFoundError
        If transformers or accelerate is not installed.

    Notes
    -----
    Whenever the Trainer logs the training loss, it logs figures of the layers that are controlled: ``density``,
    ``dead_neurons`` (outputs that no connection reaches) and ``explored`` (share of the places that were ever
    occupied), and with `by_layer` of each layer these and ``survival`` (share of the first connections that are still
    there), as ``density/<layer>`` and so on. They are in ``state.log_history``, and reach every callback that comes
    after this one. The integrations that `report_to` names come before it: pass those as callbacks too, behind this
    one, and set ``report_to="none"``.

    Examples
    --------
    >>> import topogen_torch as tt
    >>> callback = tt.transformers_callback(
    ...     lambda model, optimizer: tt.SET(model, optimizer, rng=0, update_every=500)
    ... )
    >>> callback.controller is None
    True
    """
    try:
        from topogen_torch._callbacks._transformers import callback_of
    except ModuleNotFoundError as error:
        raise _missing(error, "transformers_callback", "transformers accelerate") from None
    return callback_of(make, name=name, by_layer=by_layer)


def _missing(error: ModuleNotFoundError, owner: str, packages: str) -> ModuleNotFoundError:
    package = (error.name or "").partition(".")[0]
    if package not in packages.split():
        return error
    return ModuleNotFoundError(f"topogen_torch.{owner} needs {package}: pip install {packages}.", name=package)
