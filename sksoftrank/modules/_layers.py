"""Layers and initial weights that draw from generators of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sksoftrank._checks import as_tuple

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
# The gain that keeps a layer's variance, by torch's names; GELU and SiLU are treated
# as the ReLU they approximate.
_GAIN = {"identity": "linear", "relu": "relu", "gelu": "relu", "silu": "relu"}
AUGMENTATIONS = ("flip", "shift", "cutout")
_CPU = torch.device("cpu")
# Of a number of 16 bits, by which dropout is decided.
_LEVELS = 2**16
# Of all parameters: torch's default is the user's to change.
DTYPE = torch.float32
# The global generators are one for all threads: who borrows them makes others wait.
_borrowing = RLock()


def make_generator(random_state: int | None) -> torch.Generator | None:
    """Return a generator on the CPU; None stands for torch's global one."""
    if random_state is None:
        return None
    return torch.Generator().manual_seed(random_state)


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Run as if the caller had changed none of the settings that torch has by thread.

    These are no_grad and inference_mode, autocast, and the default device.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device() != _CPU:
            stack.enter_context(_CPU)
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def borrowed_globals(seed: int, device: torch.device = _CPU) -> Iterator[None]:
    """Seed torch's global generators of the CPU and of `device`, then put them back.

    The default dtype as well. For networks of other people, whose layers ask for
    nothing else.
    """
    on_cuda = device.type == "cuda"
    with _borrowing, torch.random.fork_rng([device] if on_cuda else []):
        dtype = torch.get_default_dtype()
        # torch.manual_seed would seed every device there is, for good.
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        torch.set_default_dtype(DTYPE)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def check_augmentation(kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds of augmentation as a tuple, or say which there are."""
    unknown = [kind for kind in as_tuple(kinds) if kind not in AUGMENTATIONS]
    if isinstance(kinds, str) or unknown:
        raise ValueError(
            f"augmentation must be a sequence of kinds among {AUGMENTATIONS}, got "
            f"{kinds!r}. Use e.g. ('flip', 'shift'), or () for none."
        )
    return tuple(kinds)


def init_weight(
    weight: Tensor, activation: str, generator: torch.Generator | None
) -> None:
    """Fill a weight such that its layer keeps the variance through `activation`."""
    gain: Any = _GAIN.get(activation, activation)
    nn.init.kaiming_uniform_(weight, nonlinearity=gain, generator=generator)


class Linear(nn.Linear):
    """A linear layer that leaves its weights to `init_weight`.

    torch's own initialisation draws from the global generator, and its `skip_init`
    imports sympy.
    """

    def reset_parameters(self) -> None:
        """Do nothing."""


class InputScale(nn.Module):
    """A learned factor for each input feature, so that training can weigh them.

    Without weight decay, and at a multiple of the learning rate: it begins at one, and
    a feature's use is its factor times a whole column of weights.
    """

    # As timm names it in an optimizer's groups.
    lr_scale = 6.0

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_features, dtype=DTYPE))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Conv1d(nn.Conv1d):
    """A convolution that leaves its weights to `init_weight`, as `Linear` does."""

    def reset_parameters(self) -> None:
        """Do nothing."""


class Conv2d(nn.Conv2d):
    """A convolution that leaves its weights to `init_weight`, as `Linear` does."""

    def reset_parameters(self) -> None:
        """Do nothing."""


class RandomLayer(nn.Module):
    """A layer that draws from a generator of its own while it trains.

    torch's own layers draw from the global generator, so that a fit would depend on
    whatever else draws from it, and on which thread comes first.
    """

    def __init__(self, random_state: int | None = None) -> None:
        super().__init__()
        self.random_state = random_state
        self._generator: torch.Generator | None = None

    def generator_on(self, device: torch.device) -> torch.Generator | None:
        """Return the generator on `device`; None stands for torch's global one."""
        if self.random_state is not None and (
            self._generator is None or self._generator.device != device
        ):
            self._generator = torch.Generator(device).manual_seed(self.random_state)
        return self._generator

    def __getstate__(self) -> dict[str, Any]:
        # A generator's state is 5 kB and serves training alone.
        return {**self.__dict__, "_generator": None}


class Dropout(RandomLayer):
    """Dropout whose masks come from a generator of its own."""

    def __init__(self, p: float, random_state: int | None = None) -> None:
        super().__init__(random_state)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        return x * self.fill_mask(torch.empty_like(x))

    def fill_mask(self, mask: Tensor) -> Tensor:
        """Fill `mask` with 0 for units to drop and 1 / (1 - p) for the others."""
        keep = 1.0 - self.p
        generator = self.generator_on(mask.device)
        if mask.device.type != "cpu":
            return mask.bernoulli_(keep, generator=generator).div_(keep)
        # A CPU draws each number of `bernoulli_` by itself, at five times the time of
        # four from one word of 64 bits. `keep` is rounded to a multiple of 2^-16.
        n_levels = min(max(round(keep * _LEVELS), 1), _LEVELS)
        n_words = -(-mask.numel() // 4)
        words = torch.empty(n_words, dtype=torch.int64, device=mask.device)
        words.random_(-(2**63), None, generator=generator)
        levels = words.view(torch.int16)[: mask.numel()].view(mask.shape)
        torch.le(levels, n_levels - 1 - _LEVELS // 2, out=mask)
        return mask.mul_(_LEVELS / n_levels)

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


class Augmentation(RandomLayer):
    """Label-preserving changes of images or signals, drawn anew for each training step.

    Parameters
    ----------
    kinds : sequence of {"flip", "shift", "cutout"}
        "flip" mirrors half of the images left to right; "shift" moves each by up to an
        eighth of its sides, a pixel at least, with zeros coming in; "cutout" sets a box
        of a quarter of the sides, a pixel at least, to zero (DeVries & Taylor 2017).
        What would leave nothing of an image does not happen: a side of one pixel is
        not moved along, and a single pixel not cut out.
    random_state : int, default=None
        Seed; None draws from torch's global generator.

    Raises
    ------
    ValueError
        For a kind that there is not.

    Examples
    --------
    >>> import torch
    >>> from sksoftrank.modules import Augmentation
    >>> augmentation = Augmentation(["flip", "shift"], random_state=0)
    >>> augmentation(torch.ones(5, 3, 8, 8)).shape
    torch.Size([5, 3, 8, 8])
    """

    def __init__(self, kinds: Sequence[str], random_state: int | None = None) -> None:
        super().__init__(random_state)
        self.kinds = check_augmentation(kinds)

    def forward(self, x: Tensor) -> Tensor:
        """Return changed images (n, c, ...) in training, and `x` itself otherwise."""
        if not self.training:
            return x
        n, device = len(x), x.device
        generator = self.generator_on(device)

        def draw(high: int) -> Tensor:
            return torch.randint(high, (n, 1), generator=generator, device=device)

        def along(values: Tensor, axis: int) -> Tensor:
            """Return values (n, size) in the shape of x, but for axes of one."""
            return values.view(n, *[1] * (axis - 1), -1, *[1] * (x.ndim - 1 - axis))

        if "flip" in self.kinds:
            x = torch.where(along(draw(2), 1).bool(), x.flip(-1), x)
        if "shift" in self.kinds:
            for axis, size in enumerate(x.shape[2:], start=2):
                reach = max(size // 8, min(size - 1, 1))
                padding = [0, 0] * (x.ndim - 1 - axis) + [reach, reach]
                places = torch.arange(size, device=device) + draw(2 * reach + 1)
                index = along(places, axis).expand(x.shape)
                x = F.pad(x, padding).gather(axis, index)
        if "cutout" in self.kinds and max(x.shape[2:]) > 1:
            is_cut = torch.ones((), dtype=torch.bool, device=device)
            for axis, size in enumerate(x.shape[2:], start=2):
                side = max(size // 4, 1)
                # Centred on any pixel: the border cuts some boxes off.
                place = torch.arange(size, device=device) - draw(size) + side // 2
                is_cut = is_cut & along((place >= 0) & (place < side), axis)
            x = x.masked_fill(is_cut, 0.0)
        return x

    def extra_repr(self) -> str:
        """Show the kinds where torch prints the module."""
        return f"kinds={self.kinds}"
