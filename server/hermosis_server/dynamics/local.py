"""Hermosis: a torch.optim.Optimizer in the caller's own process, over the same flows and rows as the server."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hermosis_server.dynamics.hamiltonian import Family
from hermosis_server.dynamics.integrators import advance_, initial_scalars
from hermosis_server.dynamics.phase_state import PhaseState
from hermosis_server.dynamics.recipes import RECIPES, Value, resolve
from hermosis_server.dynamics.rows import RowMap
from hermosis_server.errors import CorruptState, InvalidHyperparameter
from hermosis_server.records import EnergySample, StateBuffer

REFERENCE_LR = "reference_lr"


class Hermosis(Optimizer):
    """A recipe, stepped here.

    Each parameter group moves as one session does: its norms run over the group, and its state is kept in rows. A step
    that meets NaN or infinity changes nothing in its group, as on the server. A parameter without a gradient is kicked
    with zero, so friction and drift still act on it; torch would leave it alone.

    Args:
      params:       as for any torch optimizer; float32 or float64, one dtype and device a group.
      recipe:       a name of RECIPES.
      row_elements: elements a row. Norms add row by row, so it decides their last bit.
      settings:     parameters of the recipe, "lr" among them. A schedule acts on param_groups[i]["lr"]: that multiplies
                    the duration of the drift, not the friction. Other settings may be changed there too.

    Raises:
      InvalidHyperparameter: as `resolve`, or parameters that a group cannot hold.
    """

    def __init__(
        self, params: Iterable[Any], recipe: str = "hermosis", *, row_elements: int = 1024, **settings: Value
    ) -> None:
        resolve(recipe, settings)
        self._recipe = RECIPES[recipe]
        self._row_elements = row_elements
        self._residents: list[_Resident] = []
        super().__init__(params, {each.name: settings.get(each.name, each.default) for each in self._recipe.parameters})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; the group's lr is the one its schedules are measured against."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group.setdefault(REFERENCE_LR, float(group["lr"]))
        settings = self._settings(group)
        self._residents.append(_Resident.of(group["params"], self._recipe.name, settings, self._row_elements))

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], float | Tensor] | None = None, *, loss: float | Tensor | None = None
    ) -> float | Tensor | None:
        """One step of every group.

        Args:
          closure: reevaluates the model and returns the loss, as for any torch optimizer.
          loss:    the loss at the current parameters, where there is no closure; without either U is undefined.
        """
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, resident in zip(self.param_groups, self._residents, strict=True):
            resident.follow(self._recipe.name, self._settings(group))
            resident.step(group["params"], loss, float(group["lr"]) / group[REFERENCE_LR])
        return loss

    @property
    def samples(self) -> list[EnergySample]:
        """The energies of each group's last step; NaN before the first, and where undefined."""
        return [EnergySample(*resident.sample.tolist()) for resident in self._residents]

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the phase state of each group under "phase_states"."""
        phases = [
            {"scalars": resident.state.scalars} | {kind.name: rows for kind, rows in resident.kept().items()}
            for resident in self._residents
        ]
        return super().state_dict() | {"phase_states": phases}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from a saved state, bit for bit.

        Raises:
          CorruptState: the state is of other groups, another recipe or another row length.
        """
        phases = state_dict.get("phase_states")
        if phases is None or len(phases) != len(self._residents):
            raise CorruptState(
                "the state_dict lacks a phase state for each parameter group; is it another optimizer's?"
            )
        for resident, phase in zip(self._residents, phases, strict=True):
            resident.check(phase)
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "phase_states"})
        for resident, phase in zip(self._residents, phases, strict=True):
            resident.restore(phase)

    def _settings(self, group: Mapping[str, Any]) -> dict[str, Value]:
        return {each.name: group[each.name] for each in self._recipe.parameters} | {"lr": group[REFERENCE_LR]}


@dataclass(slots=True)
class _Resident:
    """One parameter group as a batch of one session."""

    settings: dict[str, Value]
    family: Family
    coefficients: Tensor
    state: PhaseState
    rows: RowMap
    gradient: Tensor
    sample: Tensor

    @classmethod
    def of(cls, params: list[Tensor], recipe: str, settings: dict[str, Value], row_elements: int) -> "_Resident":
        first = params[0] if params else torch.empty(0)
        if any(p.dtype != first.dtype or p.device != first.device for p in params) or first.dtype not in (
            torch.float32,
            torch.float64,
        ):
            raise InvalidHyperparameter(
                "a parameter group holds "
                + ", ".join(sorted({f"{p.dtype} on {p.device}" for p in params}))
                + "; wanted float32 or float64, one dtype and one device a group"
            )
        elements = sum(p.numel() for p in params)
        row_count = max(1, -(-elements // row_elements))
        hamiltonian = resolve(recipe, settings)
        family = hamiltonian.family

        def zeros() -> Tensor:
            return torch.zeros(row_count, row_elements, dtype=first.dtype, device=first.device)

        def numbers(values: Iterable[float]) -> Tensor:
            return torch.tensor([list(values)], dtype=torch.float64, device=first.device)

        kinds = [*family.buffers, *([StateBuffer.PARAMETERS] if family.needs_parameters else [])]
        return cls(
            settings=settings,
            family=family,
            coefficients=numbers(hamiltonian.coefficients()),
            state=PhaseState.from_buffers({kind: zeros() for kind in kinds}, numbers(initial_scalars(hamiltonian))),
            rows=RowMap([row_count], [max(1, elements)], first.device),
            gradient=zeros(),
            sample=numbers(EnergySample()).squeeze(0),
        )

    def follow(self, recipe: str, settings: dict[str, Value]) -> None:
        """Takes over settings that were changed in the parameter group since the last step."""
        if settings == self.settings:
            return
        hamiltonian = resolve(recipe, settings)
        if hamiltonian.family.buffers != self.family.buffers or (
            hamiltonian.family.needs_parameters and self.state.position is None
        ):
            raise InvalidHyperparameter(
                "a change of this setting needs other state than the group has; make a new optimizer for it"
            )
        self.settings, self.family = settings, hamiltonian.family
        self.coefficients = torch.tensor([hamiltonian.coefficients()], dtype=torch.float64).to(self.coefficients.device)

    def step(self, params: list[Tensor], loss: float | Tensor | None, lr_scale: float) -> None:
        _fill(self.gradient, [p.grad for p in params], params)
        if self.state.position is not None:
            _fill(self.state.position, list(params), params)
        new = self.state.clone()
        device = self.coefficients.device
        known = torch.full((1,), torch.nan) if loss is None else torch.as_tensor(loss).detach().reshape(1)
        advance = advance_(
            new,
            self.gradient,
            known.to(device, torch.float64),
            family=self.family,
            coefficients=self.coefficients,
            lr_scale=torch.full((1,), lr_scale, dtype=torch.float64, device=device),
            rows=self.rows,
        )
        taken = advance.gradient_finite & advance.state_finite
        for kind, rows in self.kept().items():
            torch.where(taken, new.buffers()[kind], rows, out=rows)
        torch.where(taken, new.scalars, self.state.scalars, out=self.state.scalars)
        self.sample = advance.sample[0]
        increment = torch.where(taken, advance.increment, 0).view(-1)
        offset = 0
        for p in params:
            p.add_(increment[offset : offset + p.numel()].view(p.shape))
            offset += p.numel()

    def kept(self) -> dict[StateBuffer, Tensor]:
        """The buffers that outlive a step; the parameters live in the model."""
        return {kind: rows for kind, rows in self.state.buffers().items() if kind != StateBuffer.PARAMETERS}

    def check(self, phase: Mapping[str, Tensor]) -> None:
        """Refuses a saved phase state of another shape."""
        wanted = {kind.name: rows.shape for kind, rows in self.kept().items()} | {"scalars": self.state.scalars.shape}
        got = {name: tensor.shape for name, tensor in phase.items()}
        if got != wanted:
            raise CorruptState(f"saved phase state is {got}, wanted {wanted}; use the same recipe and row_elements")

    def restore(self, phase: Mapping[str, Tensor]) -> None:
        for kind, rows in self.kept().items():
            rows.copy_(phase[kind.name])
        self.state.scalars.copy_(phase["scalars"])


def _fill(rows: Tensor, tensors: list[Tensor | None], like: list[Tensor]) -> None:
    """Lays tensors side by side into rows; one that is None counts as zero."""
    flat, offset = rows.view(-1), 0
    for tensor, shape in zip(tensors, like, strict=True):
        place = flat[offset : offset + shape.numel()]
        if tensor is None:
            place.zero_()
        elif tensor.is_sparse:
            raise InvalidHyperparameter("a sparse gradient; wanted a dense one, as of Embedding(sparse=False)")
        else:
            place.copy_(tensor.reshape(-1))
        offset += shape.numel()
