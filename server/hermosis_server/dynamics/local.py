"""Hermosis: a torch.optim.Optimizer in the caller's own process, over the same flows and rows as the server."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hermosis_server.dynamics.family import Family
from hermosis_server.dynamics.hamiltonian import Hamiltonian
from hermosis_server.dynamics.integrators import advance_, initial_scalars
from hermosis_server.dynamics.parameters import Value
from hermosis_server.dynamics.phase_state import MATRIX_BUFFERS, PhaseState
from hermosis_server.dynamics.recipes import RECIPES, resolve
from hermosis_server.dynamics.rows import RowMap, Spans, pieces, row_count, spans_of
from hermosis_server.errors import CorruptState, InvalidHyperparameter, InvalidRequest
from hermosis_server.records import EnergySample, StateBuffer

REFERENCE_LR = "reference_lr"


class Hermosis(Optimizer):
    """A recipe, stepped here.

    Each parameter group moves as one session does: its norms run over the group, and its state is kept in rows. A step
    that meets NaN or infinity changes nothing in its group, as on the server. A parameter without a gradient is kicked
    with zero, so friction and drift still act on it; torch would leave it alone. The parameters are what the recipe
    publishes: under leapfrog and conformal schemes a half drift ahead of the end of the last step, where the next
    gradient belongs.

    Args:
      params:       as for any torch optimizer; float32 or float64, one dtype and device a group.
      recipe:       a name of RECIPES.
      row_elements: elements a row. Norms add row by row, so it decides their last bit.
      settings:     parameters of the recipe, "lr" among them. A schedule acts on param_groups[i]["lr"]: that multiplies
                    the duration of the drift, not the friction. Other settings may be changed there too.

    Raises:
      InvalidHyperparameter: as `resolve`, or parameters that a group cannot hold.
      InvalidRequest:        by `step`, where the recipe needs the loss and there is none.
    """

    def __init__(
        self, params: Iterable[Any], recipe: str = "hermosis", *, row_elements: int = 1024, **settings: Value
    ) -> None:
        for caution in resolve(recipe, settings).cautions:
            warnings.warn(f"recipe {recipe}: {caution}", stacklevel=2)
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
            resident.follow(self._recipe.name, self._settings(group), [tuple(p.shape) for p in group["params"]])
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
        hamiltonian = resolve(recipe, settings)
        family = hamiltonian.family([tuple(p.shape) for p in params])
        spans = spans_of([p.numel() for p in params], by_tensor=family.by_tensor)

        def zeros(kind: StateBuffer, layout: Spans) -> Tensor:
            count, width = sum(row_count(span, row_elements) for span in layout), row_elements
            if kind in MATRIX_BUFFERS:
                count, width = 1, sum(layout)
            return torch.zeros(count, width, dtype=first.dtype, device=first.device)

        layouts = family.buffers(spans, holds_parameters=family.needs_parameters)
        buffers = {kind: zeros(kind, layout) for kind, layout in layouts.items()}
        return cls(
            settings=settings,
            family=family,
            coefficients=_numbers(hamiltonian.numbers(), first.device),
            state=PhaseState.from_buffers(buffers, _numbers(initial_scalars(hamiltonian), first.device)),
            rows=RowMap([spans], row_elements, first.device),
            gradient=zeros(StateBuffer.MOMENTUM, spans),
            sample=_numbers(EnergySample(), first.device).squeeze(0),
        )

    def follow(self, recipe: str, settings: dict[str, Value], shapes: Sequence[tuple[int, ...]]) -> None:
        """Takes over settings that were changed in the parameter group since the last step."""
        if settings == self.settings:
            return
        hamiltonian: Hamiltonian = resolve(recipe, settings)
        family, spans = hamiltonian.family(shapes), self.rows.spans[0]
        kept = self.state.position is not None
        if (
            family.by_tensor != self.family.by_tensor
            or family.needs_parameters > kept
            or family.buffers(spans, holds_parameters=kept) != self.family.buffers(spans, holds_parameters=kept)
        ):
            raise InvalidHyperparameter(
                "a change of this setting needs other state than the group has; make a new optimizer for it"
            )
        self.settings, self.family = settings, family
        self.coefficients = _numbers(hamiltonian.numbers(), self.coefficients.device)

    def step(self, params: list[Tensor], loss: float | Tensor | None, lr_scale: float) -> None:
        device = self.coefficients.device
        known = torch.full((1,), torch.nan) if loss is None else torch.as_tensor(loss).detach().reshape(1)
        if self.family.needs_loss and not math.isfinite(float(known)):
            raise InvalidRequest(
                "this recipe's thermal profile answers to the loss; pass it by step(loss=…) or a closure", field="loss"
            )
        self._fill(self.gradient, [p.grad for p in params], params)
        if self.state.position is not None:
            self._fill(self.state.position, list(params), params)
        new = self.state.clone()
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
        increments = self._places(torch.where(taken, advance.increment, 0), params)
        for p, increment in zip(params, increments, strict=True):
            p.add_(increment)

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

    def _places(self, rows: Tensor, like: list[Tensor]) -> list[Tensor]:
        """Views of the rows, one for each parameter and of its shape."""
        sizes = [p.numel() for p in like]
        cut = pieces(rows, self.rows.spans[0])
        if self.family.by_tensor:
            full = iter(cut)
            parts = [next(full) if size else rows.new_empty(0) for size in sizes]
        else:
            parts = list(torch.split(cut[0], sizes))
        return [part.view(p.shape) for part, p in zip(parts, like, strict=True)]

    def _fill(self, rows: Tensor, tensors: list[Tensor | None], like: list[Tensor]) -> None:
        """Lays tensors side by side into rows; one that is None counts as zero."""
        for place, tensor in zip(self._places(rows, like), tensors, strict=True):
            if tensor is None:
                place.zero_()
            elif tensor.is_sparse:
                raise InvalidHyperparameter("a sparse gradient; wanted a dense one, as of Embedding(sparse=False)")
            else:
                place.copy_(tensor)


def _numbers(values: Iterable[float], device: torch.device) -> Tensor:
    return torch.tensor([list(values)], dtype=torch.float64, device=device)
