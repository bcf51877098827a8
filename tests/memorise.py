"""Train a network until it memorises a handful of samples."""

from __future__ import annotations

import torch


def memorise(net, loss_of, steps, rate, **options):
    """Train with Adam; losses of the first and of the last step.

    Args:
        net: Network, or module, to train.
        loss_of: Function that computes the loss of `net`.
        steps: Number of optimizer steps.
        rate: Learning rate.
        options: Options of Adam.
    """
    learning = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(learning, rate, fused=True, **options)
    losses = []
    for _ in range(steps):
        loss = loss_of(net)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[0], losses[-1]
