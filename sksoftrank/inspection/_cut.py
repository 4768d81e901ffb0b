"""What of a trained network can go: directions and units of its layers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sksoftrank.estimators import BaseSoftRankClassifier
from sksoftrank.modules import MLP, EmbedHeadModule, ReducedModule
from sksoftrank.modules._cnn import _ConvBlock
from sksoftrank.modules._layers import ACTIVATIONS, InputScale
from sksoftrank.modules._transformer import _Patches
from sksoftrank.rank import size_of_share

# Of the variance: less is the rounding of weights in single precision.
ROUNDING = 1e-12
# Of their mean square, added to those of gradients: other rows may have others.
_LEAST_GRADIENT = 1e-2


@dataclass(frozen=True)
class Rows:
    """Rows (n, ...), codes (n,), weights (n,) of sum 1, the logits of the network."""

    x: Tensor
    codes: Tensor
    weight: Tensor
    logits: Tensor


class Cut:
    """A trained network, as it is made smaller by a share of variance given up."""

    methods: tuple[str, ...]

    def whole(self) -> ReducedModule:
        """Return the network with nothing cut, of what can be merged."""
        raise NotImplementedError

    def __call__(self, method: str | None, share: float) -> ReducedModule:
        """Return the network less so much."""
        raise NotImplementedError


@dataclass(frozen=True)
class Affine:
    """Weight (out, in), bias (out,), and the layer normalisation that follows.

    `factors` are the weights whose product it is, where that is smaller.
    """

    factors: tuple[Tensor, ...]
    bias: Tensor
    norm: nn.Module | None = None

    def __call__(self, x: Tensor) -> Tensor:
        for factor in self.factors[:-1]:
            x = x @ factor.T
        return torch.addmm(self.bias, x, self.factors[-1].T)


class PerceptronCut(Cut):
    """A multi-layer perceptron, cut layer by layer from the input on."""

    def __init__(self, estimator: BaseSoftRankClassifier, rows: Rows) -> None:
        module = copy.deepcopy(estimator.module_).cpu().double()
        assert isinstance(module, MLP)
        self.activate = ACTIVATIONS[module.activation]()
        self.params = {
            **estimator.net_.get_params_for("module"),
            "dropout": 0.0,
            "input_scale": False,
            "normalization": "layer" if module.normalization == "layer" else None,
            "random_state": 0,
        }
        self.x, self.weight = rows.x, rows.weight
        self.layers = _merge(module)
        has_norm = module.normalization == "layer"
        self.is_linear = module.activation == "identity" and not has_norm
        self.methods = ("rank",)
        if self.is_linear:
            return
        if not has_norm:
            self.methods = ("rank", "units", "both")
        self.targets: list[Tensor] = []
        self.orders: list[tuple[Tensor, npt.NDArray[Any]]] = []
        h = self.x
        for index, layer in enumerate(self.layers):
            if index and not has_norm:
                _, covariance = _moments(h, self.weight)
                self.orders.append(_order_units(covariance, layer.factors[0]))
            self.targets.append(layer(h))
            h = self._activated(layer, self.targets[-1])

    def _activated(self, layer: Affine, x: Tensor) -> Tensor:
        x = x if layer.norm is None else layer.norm(x)
        return self.activate(x)

    def whole(self) -> ReducedModule:
        if not self.is_linear:
            return self._build(self.layers)
        weight, bias = self._product()
        left, s, right = torch.linalg.svd(weight, full_matrices=False)
        first = Affine((s[:, None] * right,), torch.zeros_like(s))
        return self._build([first, Affine((left,), bias)])

    def _product(self) -> tuple[Tensor, Tensor]:
        """Return the weight and bias that linear layers are together."""
        (weight,), bias = self.layers[0].factors, self.layers[0].bias
        for layer in self.layers[1:]:
            (factor,) = layer.factors
            weight, bias = factor @ weight, factor @ bias + layer.bias
        return weight, bias

    def __call__(self, method: str | None, share: float) -> ReducedModule:
        if self.is_linear:
            weight, bias = self._product()
            mean, covariance = _moments(self.x, self.weight)
            axes = _leading(weight @ covariance @ weight.T, share)
            bias = bias + weight @ mean - axes @ (axes.T @ (weight @ mean))
            first = axes.T @ weight
            return self._build(
                [Affine((first,), first.new_zeros(len(first))), Affine((axes,), bias)]
            )
        kept: list[Affine] = []
        h, units = self.x, None
        is_cut = False
        for index, layer in enumerate(self.layers):
            (weight,), bias = layer.factors, layer.bias
            is_head = index == len(self.layers) - 1
            mean, covariance = _moments(h, self.weight)
            if is_cut:
                weight = weight if units is None else weight[:, units]
                rest = self.targets[index] - h @ weight.T
                change, bias = _regress(rest, h, mean, covariance, self.weight, share)
                weight = weight + change
            if method != "rank" and not is_head:
                order, explained = self.orders[index]
                n_units = np.searchsorted(explained, 1.0 - share) + 1
                units = order[: min(n_units, len(order))].sort().values
                is_cut |= len(units) < len(weight)
                weight, bias = weight[units], bias[units]
            factors: tuple[Tensor, ...] = (weight,)
            if method != "units" and not is_head:
                axes = _leading(weight @ covariance @ weight.T, share)
                rank, (n_out, n_in) = axes.shape[1], weight.shape
                if rank * (n_in + n_out) < n_in * n_out:
                    center = weight @ mean
                    bias = bias + center - axes @ (axes.T @ center)
                    factors = (axes.T @ weight, axes)
                    is_cut = True
            kept.append(Affine(factors, bias, layer.norm))
            h = self._activated(layer, kept[-1](h))
        return self._build(kept)

    def _build(self, layers: list[Affine]) -> ReducedModule:
        *hidden, head = layers
        widths = tuple(len(layer.bias) for layer in hidden)
        stride = 2 if self.layers[0].norm is None else 3
        # Before a normalisation a layer has no bias, which what is cut needs.
        replaced = {
            f"body.{stride * index}": (
                layer.factors[0].shape[1],
                *(len(factor) for factor in layer.factors),
            )
            for index, layer in enumerate(hidden)
            if len(layer.factors) > 1 or layer.norm is not None
        }
        params = {**self.params, "hidden_layer_sizes": widths}
        module = ReducedModule(MLP, params, replaced)
        for index, layer in enumerate(hidden):
            _set(module.base.get_submodule(f"body.{stride * index}"), layer)
            if layer.norm is not None:
                norm = module.base.get_submodule(f"body.{stride * index + 1}")
                norm.load_state_dict(layer.norm.state_dict())
        _set(module.base.get_submodule("output"), head)
        return module.eval()


def _set(module: Any, layer: Affine) -> None:
    """Give a linear map, or two, their weights."""
    parts = [*module] if isinstance(module, nn.Sequential) else [module]
    with torch.no_grad():
        for part, factor in zip(parts, layer.factors, strict=True):
            part.weight.copy_(factor.view(part.weight.shape))
        parts[-1].bias.copy_(layer.bias)


def _merge(module: MLP) -> list[Affine]:
    """Return the linear layers, with what can be merged into them, and the head."""
    layers: list[Affine] = []
    weight: Any
    bias: Any
    scale: Any = None
    for part in [*module.body, module.output]:
        if isinstance(part, InputScale):
            scale = part.weight.detach()
        elif isinstance(part, nn.Linear):
            weight = part.weight.detach()
            weight = weight if scale is None else weight * scale
            bias = weight.new_zeros(len(weight)) if part.bias is None else part.bias
            layers.append(Affine((weight,), bias.detach()))
            scale = None
        elif isinstance(part, nn.BatchNorm1d):
            (weight,), bias = layers[-1].factors, layers[-1].bias
            factor, offset = _affine(part)
            layers[-1] = Affine((factor[:, None] * weight,), factor * bias + offset)
        elif isinstance(part, nn.LayerNorm):
            layers[-1] = Affine(layers[-1].factors, layers[-1].bias, part)
    return layers


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Return what a batch normalisation in evaluation multiplies by and adds."""
    factor = norm.weight.detach() * (norm.running_var + norm.eps).rsqrt()
    return factor, norm.bias.detach() - norm.running_mean * factor


def _moments(h: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted mean and covariance of rows."""
    mean = weight @ h
    centered = h - mean
    return mean, (centered * weight[:, None]).T @ centered


def _leading(covariance: Tensor, share: float) -> Tensor:
    """Return the fewest directions, as columns, without which at most a share goes."""
    values, axes = torch.linalg.eigh(covariance)
    size = size_of_share(values.flip(0).clamp_min(0).numpy(), 1.0 - share)
    return axes.flip(1)[:, :size]


def _order_units(covariance: Tensor, weight: Tensor) -> tuple[Tensor, npt.NDArray[Any]]:
    """Return units, each the best to add, and the share that those so far explain.

    Of the variance of ``weight @ h``, by a pivoted Cholesky decomposition. Those left
    out are linear combinations of the others.
    """
    rest, effect = covariance.clone(), weight @ covariance
    total = float((effect * weight).sum())
    least = 1e-13 * covariance.diagonal().clone()
    order: list[int] = []
    explained: list[float] = []
    sum_so_far = 0.0
    for _ in range(len(rest)):
        own = rest.diagonal()
        gains = torch.where(own > least, effect.square().sum(dim=0) / own, -1.0)
        unit = int(gains.argmax())
        if order and (gains[unit] <= 0 or sum_so_far >= (1 - ROUNDING / 10) * total):
            break
        column, effect_of = rest[unit].clone(), effect[:, unit].clone()
        order.append(unit)
        sum_so_far += max(float(gains[unit]), 0.0)
        explained.append(sum_so_far / total if total > 0 else 1.0)
        if float(own[unit]) > 0:
            column /= own[unit].sqrt()
            effect -= torch.outer(effect_of / own[unit].sqrt(), column)
            rest -= torch.outer(column, column)
    return torch.tensor(order), np.array(explained)


def _regress(
    target: Tensor,
    h: Tensor,
    mean: Tensor,
    covariance: Tensor,
    weight: Tensor,
    share: float,
) -> tuple[Tensor, Tensor]:
    """Return the weight and bias that best make `target` of `h`.

    With a ridge of the share of the mean variance: what may go is not fitted to.
    """
    center = weight @ target
    cross = ((target - center) * weight[:, None]).T @ (h - mean)
    values, axes = torch.linalg.eigh(covariance)
    ridge = max(share * float(values.clamp_min(0).mean()), 1e-300)
    found = (cross @ axes / (values.clamp_min(0) + ridge)) @ axes.T
    return found, center - found @ mean


class LayerCut(Cut):
    """Any network whose linear layers and convolutions become products.

    How far a layer's directions matter is told by the gradients of the logits, so that
    all layers have one measure: each direction must be worth the weights it takes.
    """

    methods = ("rank",)

    def __init__(self, estimator: BaseSoftRankClassifier, rows: Rows) -> None:
        source = copy.deepcopy(estimator.module_).cpu().double()
        self.kind = type(source)
        self.params = {
            **estimator.net_.get_params_for("module"),
            "dropout": 0.0,
            "augmentation": (),
            "random_state": 0,
        }
        self.merged, layers = _merge_norms(source)
        exact = self._build(self.merged, source.state_dict(), layers).double()
        self.state = exact.base.state_dict()
        self.uses = _uses(exact, rows)
        _, spread = _moments(rows.logits, rows.weight)
        self.variance = float(spread.trace())

    def _build(
        self,
        replaced: dict[str, tuple[int, ...]],
        state: dict[str, Tensor],
        layers: dict[str, Affine],
    ) -> ReducedModule:
        module = ReducedModule(self.kind, self.params, replaced)
        other = {
            name: value
            for name, value in state.items()
            if name.rpartition(".")[0] not in replaced
        }
        module.base.load_state_dict(other, strict=False)
        for name, layer in layers.items():
            _set(module.base.get_submodule(name), layer)
        return module.eval()

    def whole(self) -> ReducedModule:
        return self._build(self.merged, self.state, self._of_state(self.merged))

    def _of_state(self, names: Any) -> dict[str, Affine]:
        return {
            name: Affine((self.state[f"{name}.weight"],), self.state[f"{name}.bias"])
            for name in names
            if f"{name}.weight" in self.state
        }

    def __call__(self, method: str | None, share: float) -> ReducedModule:
        replaced, layers = dict(self.merged), self._of_state(self.merged)
        weights = {name: self.state[f"{name}.weight"] for name in self.uses}
        # Parameters count as much as multiply-adds: early convolutions have few.
        n_weights = sum(weight.numel() for weight in weights.values())
        work = sum(weights[k].numel() * use.n_places for k, use in self.uses.items())
        for name, use in self.uses.items():
            weight = weights[name]
            n_out, n_in, *kernel = weight.shape
            size = int(np.prod(kernel))
            price = (1 / n_weights + use.n_places / work) / 2
            least = share * self.variance * price
            first = use.inputs.leading(least * (n_out * size + n_in)).T
            last = use.outputs.leading(least * (n_in * size + n_out)).T
            a, b = first.shape[1], last.shape[1]
            sizes = {
                (n_in, n_out): n_in * n_out * size,
                (n_in, b): (n_in * size + n_out) * b,
                (a, n_out): (n_in + n_out * size) * a,
            }
            if kernel:
                sizes[a, b] = n_in * a + a * b * size + b * n_out
            a, b = min(sizes, key=sizes.__getitem__)
            if (a, b) == (n_in, n_out):
                continue
            bias = self.state.get(f"{name}.bias", use.mean.new_zeros(n_out))
            factors = []
            if a < n_in:
                factors.append(use.inputs.reads @ first)
                factors[0] = factors[0].T
                back = use.inputs.writes @ first
                weight = torch.einsum("oi...,ir->or...", weight, back)
            if b < n_out:
                reads = (use.outputs.reads @ last).T
                writes = use.outputs.writes @ last
                bias = use.mean + writes @ (reads @ (bias - use.mean))
                weight = torch.einsum("ro,oi...->ri...", reads, weight)
                factors += [weight, writes]
            else:
                factors.append(weight)
            layers[name] = Affine(tuple(factors), bias)
            rank = (a, b) if kernel else (min(a, b),)
            replaced[name] = (n_in, *rank, n_out)
        return self._build(replaced, self.state, layers)


def _merge_norms(
    module: EmbedHeadModule,
) -> tuple[dict[str, tuple[int, ...]], dict[str, Affine]]:
    """Return what stands in place of batch normalisations and their convolutions."""
    replaced: dict[str, tuple[int, ...]] = {}
    layers: dict[str, Affine] = {}
    for conv_name, pool, norm_name in _normalized(module):
        norm, conv = (module.get_submodule(name) for name in (norm_name, conv_name))
        if not isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
            continue
        factor, offset = _affine(norm)
        # A maximum goes with a factor only where that keeps the order.
        if not isinstance(pool, nn.Identity) and not bool((factor > 0).all()):
            continue
        kernel: Any = conv.weight
        assert isinstance(kernel, Tensor)
        weight = factor[:, None] * kernel.detach().flatten(1)
        layers[conv_name] = Affine((weight,), offset)  # Such a one has no bias.
        replaced[conv_name] = (kernel.shape[1], kernel.shape[0])
        replaced[norm_name] = ()
    return replaced, layers


def _normalized(module: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield convolutions, what pools, and the normalisation that follows."""
    for name, part in module.named_modules():
        if isinstance(part, _ConvBlock):
            yield f"{name}.conv", part.pool, f"{name}.norm"
        elif isinstance(part, _Patches):
            for i in range(0, len(part.stages), 4):
                stages = f"{name}.stages"
                yield f"{stages}.{i}", part.stages[i + 1], f"{stages}.{i + 2}"


@dataclass(frozen=True)
class _Side:
    """Directions of what comes to a layer, or what it gives, by decreasing worth.

    Row i of `axes` is one, of worth ``worth[i]``, in coordinates that `reads` makes of
    the layer's own, and `writes` turns back.
    """

    axes: Tensor
    worth: Tensor
    reads: Tensor
    writes: Tensor

    def leading(self, least: float) -> Tensor:
        """Return the directions, at least one, of more than so much worth."""
        return self.axes[: max(int((self.worth > least).sum()), 1)]


@dataclass(frozen=True)
class _Use:
    """What rows use of a layer, at its places."""

    n_places: int
    mean: Tensor  # (out,), of what it gives.
    inputs: _Side
    outputs: _Side


def _root(matrix: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Return the root of a positive matrix and its inverse, of what is above rounding.

    To each eigenvalue so large a share of their mean is added.
    """
    values, axes = torch.linalg.eigh(matrix)
    values = values.clamp_min(0) + floor * values.clamp_min(0).mean()
    inverse = torch.where(values > 1e-14 * values.max(), values.rsqrt(), 0.0)
    return (axes * values.sqrt()) @ axes.T, (axes * inverse) @ axes.T


def _uses(module: ReducedModule, rows: Rows) -> dict[str, _Use]:
    """Return what each layer but the head is used for."""
    layers: dict[str, Any] = {
        name: part
        for name, part in module.base.named_modules()
        if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d) and name != "output"
    }
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    sums: dict[str, list[Tensor]] = {}
    places: dict[str, int] = {}

    def keep(name: str, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        seen[name] = inputs[0].detach(), output

    handles = [
        part.register_forward_hook(lambda _, x, y, name=name: keep(name, x, y))
        for name, part in layers.items()
    ]
    generator = torch.Generator().manual_seed(0)
    step = 128
    for x, weight in zip(rows.x.split(step), rows.weight.split(step), strict=True):
        with torch.enable_grad():
            logits = module(x)
            # Random signs: their gradients' squares are those of all logits, summed.
            signs = torch.randint(0, 2, logits.shape, generator=generator) * 2 - 1
            (logits * signs).sum().backward()
        for name, (given, output) in seen.items():
            assert output.grad is not None
            parts = [given, output.detach(), output.grad]
            if not isinstance(layers[name], nn.Linear):
                parts = [part.movedim(1, -1) for part in parts]
            a, z, g = (part.reshape(len(x), -1, part.shape[-1]) for part in parts)
            places[name] = z.shape[1]
            own = [
                torch.einsum("n,npi,npj->ij", weight / a.shape[1], a, a),
                torch.einsum("n,npi->i", weight / z.shape[1], z),
                torch.einsum("n,npi,npj->ij", weight / z.shape[1], z, z),
                torch.einsum("n,npi,npj->ij", weight, g, g),
            ]
            known = sums.get(name)
            sums[name] = (
                own
                if known is None
                else [u + v for u, v in zip(known, own, strict=True)]
            )
    for handle in handles:
        handle.remove()
    found = {}
    for name, (inputs, mean, outputs, gradients) in sums.items():
        kernel = layers[name].weight.detach()[..., None].flatten(2)  # (out, in, size)
        metric = torch.einsum("oik,op,pjk->ij", kernel, gradients, kernel)
        root, inverse = _root(inputs, 0.0)
        values, axes = torch.linalg.eigh(root @ metric @ root)
        first = _Side(axes.flip(1).T, values.flip(0), inverse, root)
        root, inverse = _root(gradients, _LEAST_GRADIENT)
        spread = outputs - torch.outer(mean, mean)
        values, axes = torch.linalg.eigh(root @ spread @ root)
        last = _Side(axes.flip(1).T, values.flip(0), root, inverse)
        found[name] = _Use(places[name], mean, first, last)
    return found
