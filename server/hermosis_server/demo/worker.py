"""One worker: ``python -m hermosis_server.demo.worker``. It sees its share of every minibatch and sends the gradient.

This is an ordinary training loop; RemoteOptimizer is the one line that differs from training alone.
"""

import argparse
from pathlib import Path

import torch

from hermosis_client.torch_optimizer import RemoteOptimizer
from hermosis_server.demo import digits
from hermosis_server.processes import end_with_stdin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True, help="host:port of the server")
    parser.add_argument("--session", required=True, help="id of the session to join")
    parser.add_argument("--worker", type=int, required=True, help="number of this worker, from 0")
    parser.add_argument("--workers", type=int, required=True, help="how many there are")
    parser.add_argument("--images", type=Path, required=True, help="file with the training images")
    parser.add_argument("--epochs", type=int, required=True, help="passes over the training images")
    arguments = parser.parse_args()

    end_with_stdin()
    torch.set_num_threads(1)
    training = digits.read(arguments.images)
    model = digits.network()
    optimizer = RemoteOptimizer(
        model.named_parameters(),
        session=arguments.session,
        address=arguments.address,
        worker_id=f"worker-{arguments.worker:02}",
    )
    with optimizer:
        for minibatch in digits.minibatches(len(training), arguments.epochs):
            share = minibatch[arguments.worker :: arguments.workers]
            optimizer.zero_grad()
            loss = digits.loss_of(model, training, share)
            loss.backward()  # type: ignore[no-untyped-call]
            # The server weighs each mean by its count: together they are the mean over the whole minibatch.
            optimizer.step(loss=loss.detach(), sample_count=len(share))


if __name__ == "__main__":
    main()
