r"""Exact flows of the parts of H, on (rows, elements) tensors.

Each part moves some of the state while the rest stands still, so each flow is exact; a step is a composition of them.

Source: Learning Dynamics v0.1.0, "Integration"; docs/theory.md, section 6.
"""

import torch
from torch import Tensor


def start_(momentum: Tensor, impulse: Tensor, *, first: Tensor, unit_momentum: Tensor) -> None:
    r"""Gives a session that has not stepped yet the momentum that its first gradient would have left behind.

    .. math:: X \leftarrow A_0\,y \quad \text{(first step only)}

    Args:
      momentum:      (R, E) X; changed in place.
      impulse:       (R, E) y.
      first:         (R, 1) 1 in rows of a session's first step, else 0.
      unit_momentum: (R, 1) A_0.
    """
    torch.where(first != 0, impulse * unit_momentum, momentum, out=momentum)


def cooled_kick_(momentum: Tensor, impulse: Tensor, *, retention: Tensor, impulse_gain: Tensor) -> None:
    r"""Joint flow of potential and thermal energy over one step, the force held constant.

    .. math:: X \leftarrow r X + z\,y

    With r = 1 it is the flow of the potential alone.

    Args:
      momentum:     (R, E) X; changed in place.
      impulse:      (R, E) y: the gradient, or G times it where the metric acts on the kick.
      retention:    (R, 1) r = β before / β after.
      impulse_gain: (R, 1) z, the weight of this gradient.
    """
    momentum.mul_(retention).addcmul_(impulse, impulse_gain)


def cool_(momentum: Tensor, *, retention: Tensor) -> None:
    r"""Flow of the thermal energy alone.

    .. math:: X \leftarrow r X

    Args:
      momentum:  (R, E) X; changed in place.
      retention: (R, 1) r = β before / β after.
    """
    momentum.mul_(retention)


def harmonic_kick_(momentum: Tensor, position: Tensor, *, stiffness: Tensor) -> None:
    r"""The pull of bare weight decay.

    .. math:: X \leftarrow X + \frac{k\lambda_0\tau}{h\beta_+}\,w

    Args:
      momentum:  (R, E) X; changed in place.
      position:  (R, E) w.
      stiffness: (R, 1) kλ₀τ/(hβ₊).
    """
    momentum.addcmul_(position, stiffness)


def drift_(increment: Tensor, direction: Tensor, *, reach: Tensor) -> None:
    r"""Flow of the kinetic energy: the increment of the parameters.

    .. math:: \Delta w = -d\,v, \qquad v = \frac{f}{h}\,\tilde G X

    Args:
      increment: (R, E) Δw; overwritten.
      direction: (R, E) G X; may be the increment itself.
      reach:     (R, 1) d f/h, times ζ/A where the momentum is normalised; (R, E) where each coordinate has its own f.
    """
    torch.mul(direction, -reach, out=increment)


def decay_(increment: Tensor, position: Tensor, *, rate: Tensor) -> None:
    r"""Decoupled weight decay: a dilation of the parameters beside the Hamiltonian.

    .. math:: \Delta w \leftarrow \Delta w - \eta\lambda_d\,w

    Args:
      increment: (R, E); changed in place.
      position:  (R, E) w before the step.
      rate:      (R, 1) or (R, E) η λ_d, times lr_scale, and times f where the decay follows the speed.
    """
    increment.addcmul_(position, -rate)


def retrace_(increment: Tensor, lead: Tensor, *, share: Tensor) -> None:
    r"""Takes back a share of the half drift that led to the published point (the α of the conformal scheme).

    .. math:: \Delta w \leftarrow \Delta w - (1 - \alpha)\,(q - w)

    Args:
      increment: (R, E); changed in place.
      lead:      (R, E) q - w.
      share:     (R, 1) 1 - α.
    """
    increment.addcmul_(lead, -share)
