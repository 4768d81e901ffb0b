"""Train a net in several processes, each with its share of every batch.

Run with ``torchrun --nproc-per-node 2 examples/data_parallel.py weights.pt``, on one
machine or many, with GPUs or without. skorch's AccelerateMixin does the work: it splits
the batches, averages the gradients, and places everything; hence ``device=None``, which
is its default. A batch of 32 rows in each of two processes is a step on 64 rows.
"""

import argparse

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from sklearn.datasets import load_digits
from skorch.hf import AccelerateMixin

from sksoftrank import SoftRankNet
from sksoftrank.modules import MLP


class AcceleratedSoftRankNet(AccelerateMixin, SoftRankNet):
    """A SoftRankNet that trains in as many processes as are started."""

    def _initialize_accelerator(self):
        # The criterion has no weights, and torch refuses to distribute such a module.
        criteria, self._criteria = self._criteria, []
        try:
            return super()._initialize_accelerator()
        finally:
            self._criteria = criteria


def main() -> None:
    """Train on digits, and save the weights from the main process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", help="where to save the weights")
    parser.add_argument("--batch-size", type=int, default=32, help="in each process")
    parser.add_argument("--cpu", action="store_true", help="even where there is a GPU")
    args = parser.parse_args()

    set_seed(0)
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    accelerator = Accelerator(cpu=args.cpu)
    net = AcceleratedSoftRankNet(
        MLP,
        module__n_features=64,
        module__n_classes=10,
        module__random_state=0,
        temperature=10.0,
        lr=0.003,
        max_epochs=5,
        batch_size=args.batch_size,
        iterator_train__random_state=0,
        train_split=None,
        accelerator=accelerator,
    )
    net.fit(X, y)
    accuracy = net.score(X, y)  # By all processes together.
    if accelerator.is_main_process:
        torch.save(net.module_.state_dict(), args.weights)
        print(f"{accelerator.num_processes} processes: accuracy {accuracy:.3f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
