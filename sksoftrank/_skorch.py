"""The private names of skorch that the package leans on, all of them.

skorch builds an optimizer with the rest of a net; ours waits until it is asked for.
Which attributes are optimizers, skorch alone takes note of.

`SoftRankNet` overrides `_get_predict_nonlinearity`, since the temperature that divides
the logits is known only once it is fitted.
"""

from typing import Any

from skorch import NeuralNet

__all__ = ["_initialize_optimizer", "optimizer_names"]

# A method, which takes the net first.
_initialize_optimizer = NeuralNet._initialize_optimizer


def optimizer_names(net: NeuralNet) -> Any:
    """Return the names of all optimizers of a net, a subclass's own among them."""
    return net._optimizers
