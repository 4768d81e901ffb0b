"""scikit-learn's callbacks, told of each epoch."""

from __future__ import annotations

from typing import Any

from skorch.callbacks import Callback


class EpochTasks(Callback):
    """Makes each epoch of a net a task of the fit that scikit-learn's callbacks follow.

    Parameters
    ----------
    context : sklearn.callback.CallbackContext
        Of the fit.
    **call : object
        What the callbacks are handed: `estimator`, `X`, `y` and `metadata`.

    Attributes
    ----------
    is_stopped : bool
        Whether a callback has ended the training.
    """

    def __init__(self, context: Any, **call: Any) -> None:
        self._context, self._call = context, call
        self.is_stopped = False

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
        """Begin a task."""
        self._task = self._context.subcontext(task_name="epoch")
        self._task.call_on_fit_task_begin(**self._call)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """End it; who asks gets an estimator with the weights of this epoch."""

        def attributes() -> dict[str, Any]:
            # Or dropout and batch normalisation would draw from the rows scored.
            net.module_.eval()
            return {"net_": net, "temperature_": net.temperature_, "logit_scale_": 1.0}

        if self._task.call_on_fit_task_end(
            **self._call, reconstruction_attributes=attributes
        ):
            self.is_stopped = True
            raise KeyboardInterrupt  # How skorch's callbacks stop a training.
