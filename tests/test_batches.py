import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from torch.utils.data import DataLoader, Subset, TensorDataset

from sksoftrank.training import InMemoryBatches, InMemoryDataset, _batches, make_batches


def collect(batches):
    x, y = zip(*batches, strict=True)
    return torch.cat(x), torch.cat(y)


@settings(max_examples=50)
@given(
    n=st.integers(1, 60),
    batch_size=st.integers(1, 70),
    block_rows=st.integers(1, 40),
    kind=st.sampled_from(["dense", "sparse", "tensor"]),
    shuffle=st.booleans(),
)
def test_every_row_comes_once_with_its_label(n, batch_size, block_rows, kind, shuffle):
    X = np.arange(1, 3 * n + 1, dtype=np.float32).reshape(n, 3)
    y = np.arange(n)
    source = {"dense": X, "sparse": sparse.csr_matrix(X), "tensor": torch.tensor(X)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_batches, "BLOCK_BYTES", 12 * block_rows)
        batches = InMemoryBatches(
            InMemoryDataset(source[kind], y),
            batch_size,
            shuffle=shuffle,
            random_state=0,
        )
        sizes = [len(target) for _, target in batches]
        x, target = collect(batches)
    full, rest = divmod(n, batch_size)
    assert sizes == [batch_size] * full + [rest] * (rest > 0)
    assert len(batches) == len(sizes)
    assert sorted(target.tolist()) == list(range(n))
    np.testing.assert_array_equal(x.numpy(), X[target.numpy()])


def test_each_pass_has_its_own_order_and_a_seed_repeats_them():
    dataset = InMemoryDataset(np.eye(50, dtype=np.float32), np.arange(50))

    def orders():
        batches = InMemoryBatches(dataset, 16, shuffle=True, random_state=3)
        return [collect(batches)[1].tolist() for _ in range(2)]

    first, second = orders()
    assert first != second
    assert orders() == [first, second]


def test_without_a_seed_the_order_is_torchs():
    dataset = InMemoryDataset(np.eye(50, dtype=np.float32), np.arange(50))
    state = torch.get_rng_state()
    order = collect(InMemoryBatches(dataset, shuffle=True))[1]
    torch.set_rng_state(state)
    assert order.tolist() == torch.randperm(50).tolist()
    torch.set_rng_state(state)


def test_a_last_batch_below_the_minimum_joins_the_one_before():
    dataset = InMemoryDataset(np.zeros((9, 1), np.float32), np.zeros(9, int))
    sizes = [len(y) for _, y in InMemoryBatches(dataset, 4, min_batch_size=2)]
    assert sizes == [4, 5]


def test_weights_come_with_their_rows():
    X = np.arange(10, dtype=np.float32)[:, None]
    dataset = InMemoryDataset(X, np.arange(10), sample_weight=np.arange(10.0))
    for x, (y, w) in InMemoryBatches(dataset, 3, shuffle=True, random_state=0):
        assert x[:, 0].tolist() == y.tolist() == w.tolist()
        assert w.dtype == torch.float32


def test_a_subset_gives_its_rows_only():
    dataset = InMemoryDataset(np.arange(10, dtype=np.float32)[:, None], np.arange(10))
    subset = Subset(dataset, [7, 1, 3])
    assert collect(make_batches(subset, 2))[1].tolist() == [7, 1, 3]
    shuffled = make_batches(subset, 2, shuffle=True, random_state=0)
    assert sorted(collect(shuffled)[1].tolist()) == [1, 3, 7]


def test_double_becomes_single_and_read_only_rows_are_copied():
    X = np.ones((4, 2))
    X.flags.writeable = False
    x, _ = next(iter(InMemoryBatches(InMemoryDataset(X, np.zeros(4, int)), 4)))
    assert x.dtype == torch.float32
    x.add_(1.0)
    assert X.sum() == 8


def test_other_datasets_and_loader_options_get_a_dataloader():
    other = TensorDataset(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))
    assert isinstance(make_batches(other), DataLoader)
    ours = InMemoryDataset(np.zeros((4, 2), np.float32), np.zeros(4, int))
    assert isinstance(make_batches(ours), InMemoryBatches)
    assert isinstance(make_batches(ours, num_workers=0), DataLoader)


def test_a_seeded_dataloader_repeats_its_order():
    dataset = TensorDataset(torch.arange(30.0)[:, None], torch.arange(30))

    def order():
        return collect(make_batches(dataset, 8, shuffle=True, random_state=5))[1]

    assert order().tolist() == order().tolist() != list(range(30))
