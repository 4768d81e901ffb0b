"""The stacked engine: every member ends where it would have ended alone."""

import copy

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sksoftrank.losses import TemperatureCrossEntropyLoss
from sksoftrank.modules import MLP
from sksoftrank.training import (
    InMemoryBatches,
    InMemoryDataset,
    Member,
    train_stack,
)

N_EPOCHS = 5
ADAM, ADAMW, SGD = torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD
OPTIMIZERS = {
    ADAM: {},
    ADAMW: {"betas": (0.8, 0.99)},
    SGD: {"momentum": 0.9, "nesterov": True},
}


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def problem(n, d, c, seed, weighted=False):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)).astype(np.float32)
    y = rng.integers(c, size=n)
    weight = rng.random(n) + 0.1 if weighted else None
    return InMemoryDataset(X, y, weight)


def make_member(data, seed, batch_size, rates, hidden, activation, dropout, **own):
    """Return a member whose seed sets weights, masks and order."""
    n_classes = own.pop("n_classes")
    module = MLP(
        data.X.shape[1],
        n_classes,
        hidden,
        activation=activation,
        dropout=dropout,
        random_state=seed,
    )
    batches = InMemoryBatches(data, batch_size, shuffle=True, random_state=seed)
    return Member(module, batches, learning_rates=rates, **own)


def reference(member, kind, params):
    """Train a copy of the member's network with autograd and torch's optimizer."""
    module = copy.deepcopy(member.module)
    source = member.batches
    batches = InMemoryBatches(
        source.dataset,
        source.batch_size,
        shuffle=True,
        random_state=copy.deepcopy(source.random_state),
    )
    optimizer = kind(
        module.parameters(),
        lr=1.0,
        weight_decay=member.weight_decay,
        fused=True,
        **params,
    )
    criterion = TemperatureCrossEntropyLoss(label_smoothing=member.label_smoothing)
    losses = []
    for temperature, rate in zip(
        member.temperatures, member.learning_rates, strict=True
    ):
        module.train()
        optimizer.param_groups[0]["lr"] = rate
        criterion.temperature = temperature
        total = 0.0
        for x, target in batches:
            target = target if isinstance(target, tuple) else (target,)
            optimizer.zero_grad()
            loss = criterion(module(x), *target)
            loss.backward()
            if member.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(
                    module.parameters(), member.max_grad_norm
                )
            optimizer.step()
            total += loss.item() * len(x)
        losses.append(total / batches.n_rows)
    return module, losses


@st.composite
def stacks(draw):
    """Draw a stack of one to four members, most settings a member's own."""
    k = draw(st.integers(1, 4))
    seed = draw(st.integers(0, 1000))
    d, c = draw(st.integers(1, 7)), draw(st.integers(2, 6))
    n = draw(st.integers(5, 90))
    batch_size = draw(st.sampled_from([1, 7, 16, 33, 128]))
    # Two units at least: with one, for a batch of one row, autograd swaps the factors
    # of a product.
    hidden = tuple(draw(st.lists(st.integers(2, 20), min_size=1, max_size=3)))
    activation = draw(st.sampled_from(["identity", "relu", "gelu", "silu", "tanh"]))
    kind = draw(st.sampled_from(list(OPTIMIZERS)))
    sometimes = st.booleans()
    smoothed, dropping, clipped, decayed = (draw(sometimes) for _ in range(4))
    members = []
    for i in range(k):
        schedule = draw(st.sampled_from([(1.0, 1.0), (0.3, 0.3), (20.0, 20.0), (1, 9)]))
        rate = draw(st.floats(1e-4, 5e-3))
        members.append(
            make_member(
                # Folds differ by a row or so; some members have far fewer.
                problem(
                    max(n - draw(st.sampled_from([0, 1, 2, n // 2])), 1),
                    d,
                    c,
                    seed + i,
                    weighted=draw(sometimes),
                ),
                seed + i,
                batch_size,
                np.linspace(rate, rate / 3, N_EPOCHS).tolist(),
                hidden,
                activation,
                dropout=draw(st.sampled_from([0.0, 0.3])) if dropping else 0.0,
                n_classes=c,
                temperatures=np.linspace(*schedule, N_EPOCHS).tolist(),
                weight_decay=draw(st.sampled_from([0.0, 0.05])) if decayed else 0.0,
                label_smoothing=draw(st.sampled_from([0.0, 0.1])) if smoothed else 0.0,
                max_grad_norm=draw(st.sampled_from([None, 0.05])) if clipped else None,
            )
        )
    return members, kind


@settings(deadline=None, max_examples=60)
@given(stack=stacks())
def test_deterministic_members_equal_autograd_to_the_last_bit(stack):
    members, kind = stack
    expected = [reference(m, kind, OPTIMIZERS[kind]) for m in members]
    train_stack(members, kind, OPTIMIZERS[kind], deterministic=True)
    for member, (module, losses) in zip(members, expected, strict=True):
        assert torch.equal(weights(member.module), weights(module))
        np.testing.assert_allclose(
            [record["train_loss"] for record in member.history], losses, rtol=1e-5
        )


@settings(deadline=None, max_examples=60)
@given(stack=stacks())
def test_fast_members_equal_autograd_to_a_rounding(stack):
    members, kind = stack
    expected = [reference(m, kind, OPTIMIZERS[kind])[0] for m in members]
    train_stack(members, kind, OPTIMIZERS[kind])
    for member, module in zip(members, expected, strict=True):
        torch.testing.assert_close(
            weights(member.module), weights(module), rtol=0, atol=1e-6
        )
