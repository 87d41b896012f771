"""The engine's step without a wire: all that the benchmarks know of the engine's inside is in this file."""

from dataclasses import replace
from math import nan

import numpy as np
import torch

from benchmarks.peers.child import gradient
from hermosis.wire import Dtype
from hermosis_server.dynamics import Hamiltonian, Relativistic, fused, resolve
from hermosis_server.engine import resident as on_device
from hermosis_server.engine.arena import Arena, address_of
from hermosis_server.engine.entries import Entry, Part
from hermosis_server.engine.step import Stepper
from hermosis_server.records import Outcome, Reply, ReplyWish


class EngineStep:
    """Sessions of one recipe that step together in one launch.

    Args:
      sessions, parameters: S, and P of each.
      recipe:   of SGD with momentum 0.9, or AdamW: "sgd", "adamw".
      normed:   whether the drift needs the norm of the session's momentum first, as in relativistic motion.
      device:   where they live.
      threads:  of a step on the CPU.
      replies:  whether each step writes the new parameters for the worker too.
    """

    def __init__(
        self,
        sessions: int,
        parameters: int,
        recipe: str,
        *,
        normed: bool = False,
        device: str = "cpu",
        threads: int = 1,
        replies: bool = False,
    ) -> None:
        arena = Arena(torch.device(device), limit_bytes=1 << 50)
        self._stepper = Stepper(arena, fused.Pool(threads))
        memory = memoryview(bytearray(gradient(parameters).tobytes()))
        part = Part(memory, address_of(memory), Dtype.FLOAT32, 1e-3)
        wish = ReplyWish(reply=Reply.PARAMETERS) if replies else None
        start = memoryview(bytearray(np.zeros(parameters, np.float32).tobytes()))
        self._entries = []
        for _ in range(sessions):
            resident = on_device.reserve(
                arena, hamiltonian(recipe, normed), shapes=[(parameters,)], holds_parameters=True
            )
            on_device.initialise(arena, resident, start, Dtype.FLOAT32)
            self._entries.append(Entry(resident, (part,), nan, 1.0, wish))

    def step(self) -> None:
        """One step of all of them.

        Raises:
          RuntimeError: one of them was not applied, so nothing was measured.
        """
        stepped = self._stepper.step(self._entries)
        if any(outcome is not Outcome.APPLIED for outcome in stepped.outcomes):
            raise RuntimeError("a session was not stepped")


def hamiltonian(recipe: str, normed: bool) -> Hamiltonian:
    values = {"lr": 1e-3, "momentum": 0.9} if recipe == "sgd" else {"lr": 1e-3}
    plain = resolve(recipe, values)
    return replace(plain, kinetic=Relativistic(max_step=1.0)) if normed else plain
