"""The Triton kernels are the flows. On a machine without a CUDA device they run in Triton's interpreter."""

import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tests.dynamics.batches import SHAPES, Batch, batch_of, draw, roster
from torch import Tensor

from hermosis.wire import Dtype
from hermosis_server.dynamics import SCALARS, Hamiltonian, NormScope, RowMap, Scheme, fused_cuda, resolve, spans_of
from hermosis_server.records import EnergySample, Reply

pytest.importorskip("triton", reason="Triton is not installed")
from hermosis_server.dynamics.fused_cuda import kernels

ROSTER = {name: one for name, one in roster().items() if fused_cuda.covers(one.family(SHAPES))}
TORCH = {Dtype.FLOAT32: torch.float32, Dtype.FLOAT16: torch.float16, Dtype.BFLOAT16: torch.bfloat16}
# Sizes of three sessions in rows of 64: a bit of a row, rows and a bit, whole rows.
SIZES = (5, 150, 128)
CANARY = 7.0
BITS: Any = {"rtol": 0, "atol": 0, "equal_nan": True}


@pytest.fixture(autouse=True)
def kernels_run_there(device: torch.device) -> None:
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("Triton compiles in this process, and compiles for CUDA only")


@dataclass
class Wire:
    """One session's gradient and reply, as elements side by side somewhere in memory."""

    gradient: Tensor
    reply: Reply = Reply.INCREMENT
    dtype: Dtype = Dtype.FLOAT32
    shift: int = 0  # elements by which both miss a good address
    _memory: list[Tensor] = field(default_factory=list)

    def columns(self) -> list[int]:
        size, device = self.gradient.numel(), self.gradient.device
        came = torch.full((size + self.shift + 2,), CANARY, dtype=self.gradient.dtype, device=device)
        came[self.shift : self.shift + size] = self.gradient
        goes = torch.full((size + self.shift + 2,), CANARY, dtype=TORCH[self.dtype], device=device)
        self._memory = [came, goes]
        dtype = next(one for one, kind in TORCH.items() if kind is self.gradient.dtype)
        address = 0 if self.reply is Reply.NONE else goes[self.shift :].data_ptr()
        return [came[self.shift :].data_ptr(), dtype, address, self.reply, self.dtype]

    @property
    def answer(self) -> Tensor:
        goes, end = self._memory[1], self.shift + self.gradient.numel()
        assert set(torch.cat([goes[: self.shift], goes[end:]]).tolist()) == {CANARY}, "wrote beside its place"
        return goes[self.shift : end]


def addresses(batch: Batch) -> Tensor:
    """What fused_cuda.Rows wants of the rows of a batch."""
    state, length = batch.state, batch.state.momentum.shape[1]
    lines: list[list[int]] = []
    for spans in batch.rows.spans:
        begin = 0
        for span in spans:
            ends = range(0, max(span, 1), length)
            lines += [[0] * 5 + [begin + top, 0, min(length, span - top)] for top in ends]
            begin += span
    table = torch.tensor(lines)
    buffers = (state.position, state.momentum, state.second_moment, state.first_moment, state.lead)
    for column, buffer in enumerate(buffers):
        if buffer is not None:
            table[:, column] = buffer.data_ptr() + torch.arange(len(table)) * length * 4
    return table.to(state.momentum.device)


def step(
    batch: Batch, wires: Sequence[Wire], loss: Sequence[float] | None = None, lr_scale: Sequence[float] | None = None
) -> tuple[Tensor, Tensor]:
    """A fused step; gives samples and largest magnitudes."""
    device, ones = batch.state.momentum.device, [1.0] * len(wires)
    length = batch.state.momentum.shape[1]

    def numbers(values: Sequence[float] | None) -> Tensor:
        return torch.tensor(list(values or ones), dtype=torch.float64, device=device)

    stepped = fused_cuda.step(
        batch.family,
        rows=fused_cuda.Rows(RowMap(batch.rows.spans, length, device, fused_cuda.Groups), length, addresses(batch)),
        holds_parameters=batch.state.position is not None,
        wires=torch.tensor([wire.columns() for wire in wires], device=device),
        loss=numbers(loss),
        lr_scale=numbers(lr_scale),
        coefficients=batch.coefficients,
        scalars=batch.state.scalars,
    )
    return stepped.sample, stepped.largest


def assert_near(fused: Tensor, plain: Tensor, what: str) -> None:
    """A few roundings apart: the processor contracts some of the flows' products and sums, the kernels none."""
    scale = float(plain.abs().max())
    torch.testing.assert_close(fused, plain, rtol=3e-5, atol=3e-6 * scale, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize("name", ROSTER)
def test_kernels_do_what_the_flows_do(name: str, device: torch.device) -> None:
    sizes = [sum(math.prod(shape) for shape in SHAPES)] * 2
    plain, fused = (
        batch_of(ROSTER[name], draw(1, *sizes, dtype=torch.float32, device=device), shapes=SHAPES) for _ in range(2)
    )
    for number in range(2):
        gradients = draw(10 + number, *sizes, dtype=torch.float32, device=device)
        losses, scales = [2.0, 1.0 / (1 + number)], [1.0, 0.5]
        advance = plain.step(plain.rows_of(gradients), losses, scales)
        wires = [Wire(gradient) for gradient in gradients]
        sample, largest = step(fused, wires, losses, scales)
        for buffer, rows in plain.state.buffers().items():
            assert_near(fused.state.buffers()[buffer], rows, buffer.name)
        assert_near(torch.cat([wire.answer for wire in wires]), torch.cat(plain.vectors_of(advance.increment)), "reply")
        torch.testing.assert_close(fused.state.scalars, plain.state.scalars, rtol=1e-6, atol=1e-6, equal_nan=True)
        torch.testing.assert_close(sample, advance.sample, rtol=1e-6, atol=1e-6, equal_nan=True)
    found = torch.stack([rows.abs().amax() for rows in fused.state.buffers().values()]).amax()
    assert float(largest.max()) == float(found), "what Slot.largest finds after a restart"
    padding = fused.rows_of([torch.ones(size, device=device) for size in sizes]) == 0
    for buffer, rows in fused.state.buffers().items():
        assert not rows[padding].any(), f"the padding of {buffer.name} is not zero any more"


@pytest.mark.parametrize("name", ["adamw", "rgd", "lookahead by coordinate", "tabulated by tensor"])
def test_a_batch_equals_each_session_alone_to_the_bit(name: str, device: torch.device) -> None:
    hamiltonian = ROSTER[name]
    positions = draw(3, *SIZES, dtype=torch.float32, device=device)
    together = batch_of(hamiltonian, positions)
    alone = [batch_of(hamiltonian, [position]) for position in positions]
    kinds = list(Dtype)
    for number in range(2):
        gradients = draw(5 + number, *SIZES, dtype=torch.float32, device=device)
        wires = [Wire(gradient.to(TORCH[kind])) for gradient, kind in zip(gradients, kinds, strict=True)]
        sample, largest = step(together, wires, [1.0, 2.0, 3.0])
        for index, batch in enumerate(alone):
            wire = Wire(gradients[index].to(TORCH[kinds[index]]), shift=index)
            one_sample, one_largest = step(batch, [wire], [index + 1.0])
            assert torch.equal(wire.answer, wires[index].answer)
            assert torch.equal(batch.position(), together.position(index))
            torch.testing.assert_close(batch.state.scalars[0], together.state.scalars[index], **BITS)
            torch.testing.assert_close(one_sample[0], sample[index], **BITS)
            assert one_largest[0] == largest[index]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_narrow_gradient_is_the_widened_one(dtype: torch.dtype, device: torch.device) -> None:
    narrow, wide = (batch_of(resolve("adamw", {}), draw(1, 200, dtype=torch.float32, device=device)) for _ in range(2))
    (gradient,) = draw(2, 200, dtype=torch.float32, device=device)
    gradient[:3] = torch.tensor([6e-8, -1e-39, 6e4])  # subnormal in float16, in float32; large
    step(narrow, [Wire(gradient.to(dtype), shift=1)])
    step(wide, [Wire(gradient.to(dtype).float())])
    assert torch.equal(narrow.position(), wide.position())
    assert torch.equal(narrow.state.scalars, wide.state.scalars)


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # of the interpreter; the value is infinite
@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize(("reply", "shift"), [(Reply.PARAMETERS, 0), (Reply.INCREMENT, 1), (Reply.NONE, 0)])
def test_replies_are_rounded_as_torch_rounds(reply: Reply, dtype: Dtype, shift: int, device: torch.device) -> None:
    position = draw(1, 150, dtype=torch.float32, device=device)
    # Beyond float16; below it; two ties in bfloat16; below float32.
    position[0][:5] = torch.tensor([7e4, -3e-8, 1 + 2**-8, 1 + 3 * 2**-8, 1e-41])
    batch = batch_of(resolve("sgd", {"momentum": 0.9, "lr": 1e-3}), position)
    before = batch.position().clone()
    (gradient,) = draw(2, 150, dtype=torch.float32, device=device)
    gradient[:5] = 0
    wire = Wire(gradient, reply, dtype, shift)
    step(batch, [wire])
    answer, after = wire.answer, batch.position()
    if reply is Reply.NONE:
        assert (answer == CANARY).all()
    elif reply is Reply.PARAMETERS:
        assert torch.equal(answer, after.to(answer.dtype))
    elif dtype is Dtype.FLOAT32:
        assert torch.equal(before + answer, after), "position plus increment is the server's own sum"
    else:
        twin = batch_of(resolve("sgd", {"momentum": 0.9, "lr": 1e-3}), [before])
        exact = Wire(gradient)
        step(twin, [exact])
        assert torch.equal(answer, exact.answer.to(answer.dtype))


@pytest.mark.parametrize("name", ["sgd", "rgd", "adam"])
def test_workers_may_hold_the_parameters(name: str, device: torch.device) -> None:
    positions = draw(1, *SIZES, dtype=torch.float32, device=device)
    here, there = batch_of(ROSTER[name], positions), batch_of(ROSTER[name], positions, on_worker=True)
    for number in range(2):
        gradients = draw(2 + number, *SIZES, dtype=torch.float32, device=device)
        one, other = [Wire(gradient) for gradient in gradients], [Wire(gradient) for gradient in gradients]
        step(here, one)
        step(there, other)
        assert all(torch.equal(a.answer, b.answer) for a, b in zip(one, other, strict=True))
        assert torch.equal(here.state.momentum, there.state.momentum)


def test_kernels_cover_all_but_what_they_cannot_know() -> None:
    left_out = {name for name, one in roster().items() if not fused_cuda.covers(one.family(SHAPES))}
    assert left_out == {"power by coordinate", "feedback", "feedback conformal by coordinate"}
    assert not fused_cuda.covers(resolve("hermosis", {}).family(SHAPES)), "matrices are decomposed by the flows"
    conformal = Hamiltonian(learning_rate=0.1, norm_scope=NormScope.COORDINATE, integrator=Scheme.CONFORMAL)
    assert not fused_cuda.covers(conformal.family(SHAPES))


def test_sums_of_a_group_know_nothing_of_the_others(device: torch.device) -> None:
    """Through one level of the tree, and two, and more."""
    counts = [1, 3, 64, 65, 200, 5000]
    (values,) = draw(1, sum(counts), dtype=torch.float64, device=device)
    together = fused_cuda.Groups(counts, device).totals(values, values.square())
    for index, part in enumerate(values.split(counts)):
        alone = fused_cuda.Groups([counts[index]], device).totals(part.contiguous(), part.square())
        for one, all_ in zip(alone, together, strict=True):
            assert one[0] == all_[index]
        torch.testing.assert_close(alone[0][0], part.sum(), rtol=1e-12, atol=1e-12)
    largest = fused_cuda.Groups(counts, device).largest(values.abs())
    assert largest.tolist() == [float(part.abs().max()) for part in values.split(counts)]


@pytest.mark.parametrize("name", ROSTER)
def test_a_step_can_be_captured_since_the_host_looks_at_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the meta device have shapes and no values: to look at one, or to mix it with the host's, fails."""
    for kernel in ("step_rows", "sum_items"):
        monkeypatch.setattr(kernels, kernel, defaultdict(lambda: lambda *arguments, **options: None))
    family, device = ROSTER[name].family(SHAPES), torch.device("meta")
    spans = spans_of([math.prod(shape) for shape in SHAPES], by_tensor=family.by_tensor)
    rows = RowMap([spans] * 3, 64, device, fused_cuda.Groups)

    def numbers(*sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=torch.float64, device=device)

    stepped = fused_cuda.step(
        family,
        rows=fused_cuda.Rows(rows, 64, torch.empty((sum(rows.row_counts), 8), dtype=torch.int64, device=device)),
        holds_parameters=True,
        wires=torch.empty((3, 5), dtype=torch.int64, device=device),
        loss=numbers(3),
        lr_scale=numbers(3),
        coefficients=numbers(3, len(ROSTER[name].numbers())),
        scalars=numbers(3, len(SCALARS)),
    )
    assert stepped.sample.shape == (3, len(EnergySample._fields))
    assert stepped.largest.device == device
