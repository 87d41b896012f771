"""The fused step against the flows that define it."""

import itertools
import random

import numpy as np
import pytest
import torch
from torch import Tensor

from hermosis.wire import Dtype
from hermosis_server.dynamics import (
    COEFFICIENTS,
    SCALARS,
    Advance,
    Constant,
    Diagonal,
    Euclidean,
    Exponential,
    Force,
    ForceMode,
    Hamiltonian,
    Linear,
    MetricPlace,
    NormKind,
    NormScope,
    Power,
    Relativistic,
    Scheme,
    WeightDecay,
    resolve,
)
from hermosis_server.dynamics.fused import Fate, Pool, covers
from hermosis_server.errors import InvalidHyperparameter
from hermosis_server.records import EnergySample, Reply, StateBuffer

from .batches import SHAPES, Batch, batch_of, draw, matrix_roster, roster
from .fused_batches import TORCH, Answers, fused_step

SIZES = (1, 63, 64, 65, 300, 17)
LOSSES = [0.3 * session for session in range(len(SIZES))]
SCALES = [1 + 0.1 * session for session in range(len(SIZES))]
CPU = torch.device("cpu")


def drawn(seed: int) -> Hamiltonian:
    """A Hamiltonian of any structure that the fused step covers."""
    source = random.Random(seed)
    while True:
        metric = Euclidean()
        if source.random() < 0.6:
            metric = Diagonal(
                second_moment_decay=source.choice([0.9, 0.999, 1.0]),
                second_moment_gain=source.choice([0.1, 1.0]),
                epsilon=source.choice([1e-8, 1e-3]),
                power=source.randint(1, 8) / 8,
                epsilon_inside=source.random() < 0.4,
                normalise=source.random() < 0.5,
                centered=source.random() < 0.4,
                place=source.choice(list(MetricPlace)),
            )
        kinetic = {}
        if source.random() < 0.6:
            limit = Relativistic(
                speed_limit=source.choice([0.05, 1.0]),
                rest_cooling=source.choice([0.0, 0.4]),
                rest_energy=source.choice([0.0, 0.7]),
            )
            kinetic = {"kinetic": limit}
        decay = WeightDecay(
            bare=source.choice([0.0, 0.0, 0.1]),
            thermal=source.choice([0.0, 0.1]),
            decoupled=source.choice([0.0, 0.1]),
            follows_speed=source.random() < 0.5,
        )
        scheme = source.choice(list(Scheme))
        try:
            return Hamiltonian(
                learning_rate=0.03,
                step_duration=source.choice([1.0, 0.5]),
                information_unit=source.choice([1.0, 3.0]),
                initial_beta=source.choice([1.0, 2.0]),
                thermal=source.choice(
                    [
                        Exponential(momentum_retention=0.9),
                        Exponential(momentum_retention=0.0),
                        Constant(),
                        Linear(growth=0.2),
                        Linear(growth=-0.05),
                        Power(exponent=2.5, age=3.0),
                    ]
                ),
                force=Force(mode=source.choice(list(ForceMode)), gradient_gain=source.choice([1.0, 0.7])),
                norm_scope=source.choice(list(NormScope)),
                norm_kind=source.choice(list(NormKind)),
                metric=metric,
                weight_decay=decay,
                normalise=source.random() < 0.4,
                lookahead=source.random() < 0.3,
                first_kick=source.choice([None, 0.5]),
                integrator=scheme,
                kept_drift=source.choice([1.0, 0.4]) if scheme is Scheme.CONFORMAL else 1.0,
                **kinetic,
            )
        except InvalidHyperparameter:
            continue


COVERED = {name: each for name, each in roster().items() if covers(each.family(SHAPES))}
MEMBERS = COVERED | {f"drawn {seed}": drawn(seed) for seed in range(80)}


@pytest.fixture
def one_rounding_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch as IEEE has it: on some processors addcmul rounds once in place of twice, and a root is off by an ulp."""
    monkeypatch.setattr(Tensor, "addcmul_", lambda self, left, right: self.add_(left * right))
    monkeypatch.setattr(torch, "addcmul", lambda plus, left, right: plus + left * right)
    monkeypatch.setattr(Tensor, "sqrt_", lambda self: self.copy_(self.double().sqrt()))


def twins(hamiltonian: Hamiltonian, *, on_worker: bool = False, row_elements: int = 64) -> tuple[Batch, Batch]:
    """The same batch twice; sessions of several tensors where those are told apart."""
    by_tensor = hamiltonian.family(SHAPES).by_tensor
    shapes = SHAPES if by_tensor else None
    positions = draw(1, *([100] * 3 if by_tensor else SIZES), dtype=torch.float32, device=CPU)
    first, second = (
        batch_of(hamiltonian, positions, row_elements=row_elements, on_worker=on_worker, shapes=shapes)
        for _ in range(2)
    )
    return first, second


def gradients_of(batch: Batch, seed: int) -> list[Tensor]:
    return draw(seed, *(sum(spans) for spans in batch.rows.spans), dtype=torch.float32, device=CPU)


def step_both(plain: Batch, fused: Batch, seed: int, reply: Reply) -> tuple[Advance, Answers]:
    count = len(plain.hamiltonians)
    gradients = gradients_of(plain, seed)
    advance = plain.step(plain.rows_of(gradients), LOSSES[:count], SCALES[:count])
    return advance, fused_step(fused, gradients, LOSSES[:count], SCALES[:count], reply=reply)


def compare_numbers(got: np.ndarray, wanted: np.ndarray, names: tuple[str, ...], rtol: float) -> None:
    """Numbers that cancel are held against the energies that they are differences of."""
    size = np.nanmax(np.abs(np.where(np.isinf(wanted), 0, wanted)), axis=1, keepdims=True)
    for column, name in enumerate(names):
        np.testing.assert_allclose(
            got[:, column : column + 1] / size, wanted[:, column : column + 1] / size, rtol, 1e-2 * rtol, err_msg=name
        )


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.usefixtures("one_rounding_each")
def test_fused_step_has_the_bits_of_the_flows(name: str) -> None:
    hamiltonian = MEMBERS[name]
    reads_parameters = hamiltonian.family(SHAPES).needs_parameters
    for on_worker in (False,) if reads_parameters else (False, True):
        plain, fused = twins(hamiltonian, on_worker=on_worker)
        for turn in range(3):
            reply = Reply.INCREMENT if on_worker or turn % 2 else Reply.PARAMETERS
            advance, answers = step_both(plain, fused, 10 + turn, reply)
            assert (answers.stepped.outcome == Fate.APPLIED).all()
            for kind, rows in plain.state.buffers().items():
                assert torch.equal(fused.state.buffers()[kind], rows), kind  # padding, which is zero, included
            source = advance.increment if reply is Reply.INCREMENT else plain.state.position
            assert source is not None
            for answer, vector in zip(answers.replies, plain.vectors_of(source), strict=True):
                assert torch.equal(answer, vector)
            compare_numbers(answers.stepped.samples, advance.sample.numpy(), EnergySample._fields, 1e-11)
            compare_numbers(fused.state.scalars.numpy(), plain.state.scalars.numpy(), SCALARS, 1e-11)
            fused.state.scalars.copy_(plain.state.scalars)  # what differs in the last bit is not to add up


@pytest.mark.parametrize("name", COVERED)
@pytest.mark.parametrize("row_elements", [256, 2048])
def test_fused_step_is_within_rounding_of_the_flows_as_torch_rounds_them(name: str, row_elements: int) -> None:
    plain, fused = twins(COVERED[name], row_elements=row_elements)
    for turn in range(3):
        advance, answers = step_both(plain, fused, 10 + turn, Reply.INCREMENT)
        for kind, rows in plain.state.buffers().items():
            torch.testing.assert_close(
                fused.state.buffers()[kind], rows, rtol=0, atol=4e-7 * float(rows.abs().max()), msg=kind.name
            )
        wanted = torch.cat(plain.vectors_of(advance.increment))
        torch.testing.assert_close(
            torch.cat(answers.replies), wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()), msg="increment"
        )


def test_the_rest_goes_through_the_flows() -> None:
    left_out = {name for name, each in (roster() | matrix_roster()).items() if not covers(each.family(((4, 3),)))}
    assert left_out >= set(matrix_roster())
    assert left_out - set(matrix_roster()) == {
        "vradam",
        "vradam tensor",
        "power by coordinate",
        "tabulated by tensor",
        "feedback",
        "feedback conformal by coordinate",
    }


@pytest.mark.parametrize("dtype", [Dtype.FLOAT16, Dtype.BFLOAT16])
def test_every_finite_half_is_widened_without_loss(dtype: Dtype) -> None:
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(TORCH[dtype])
    halves = halves[halves.isfinite() & (halves.float().abs() < 1e20)]
    batch = batch_of(resolve("sgd", {"momentum": 0.9}), [torch.zeros(halves.numel())], row_elements=2048)
    answers = fused_step(batch, [halves], [0.0], [1.0])
    assert answers.stepped.outcome[0] == Fate.APPLIED
    assert torch.equal(batch.vectors_of(batch.state.momentum)[0], halves.float())


@pytest.mark.parametrize("dtype", list(Dtype))
def test_parameters_are_rounded_as_torch_rounds_them(dtype: Dtype) -> None:
    bits = torch.randint(-(2**31), 2**31, (20_003,), generator=torch.Generator().manual_seed(3), dtype=torch.int64)
    exact = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(TORCH[Dtype.BFLOAT16]).float()
    ties = exact + (exact.view(torch.int32) + 2**16).view(torch.float32)
    values = torch.cat([bits.to(torch.int32).view(torch.float32), ties / 2, torch.tensor([65504.0, 65519.0, 65520.0])])
    values = values[values.isfinite() & (values.abs() < 1e25)]
    batch = batch_of(resolve("sgd", {"momentum": 0.9}), [values], row_elements=2048)
    answers = fused_step(batch, [torch.zeros_like(values)], [0.0], [1.0], reply=Reply.PARAMETERS, reply_dtype=dtype)
    assert answers.stepped.outcome[0] == Fate.APPLIED
    assert torch.equal(answers.replies[0], values.to(TORCH[dtype]))
    assert not answers.replies[0].isnan().any()


@pytest.mark.parametrize(("gradient", "reply"), list(itertools.product(Dtype, Dtype)))
@pytest.mark.parametrize("kind", [Reply.PARAMETERS, Reply.INCREMENT])
def test_wire_dtypes_of_gradient_and_reply(gradient: Dtype, reply: Dtype, kind: Reply) -> None:
    narrow = [each.to(TORCH[gradient]) for each in draw(2, *SIZES, dtype=torch.float32, device=CPU)]
    first, second = twins(COVERED["adamw"])
    before = torch.cat(first.vectors_of(first.state.position)) if first.state.position is not None else None
    exact = fused_step(first, [each.float() for each in narrow], LOSSES, SCALES, reply=kind)
    answers = fused_step(second, narrow, LOSSES, SCALES, reply=kind, reply_dtype=reply)
    assert np.array_equal(exact.stepped.samples, answers.stepped.samples, equal_nan=True)
    for wide, answer in zip(exact.replies, answers.replies, strict=True):
        assert torch.equal(wide.to(TORCH[reply]), answer)
    assert first.state.position is not None
    assert before is not None
    after = torch.cat(first.vectors_of(first.state.position))
    assert torch.equal(torch.cat(exact.replies), after) or torch.equal(before + torch.cat(exact.replies), after)


def bits_of(batch: Batch) -> list[bytes]:
    return [*(rows.numpy().tobytes() for rows in batch.state.buffers().values()), batch.state.scalars.numpy().tobytes()]


@pytest.mark.parametrize("name", ["adamw", "rgd", "rgd euler", "lookahead by coordinate", "linear leapfrog"])
@pytest.mark.parametrize("trouble", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_leaves_its_session_and_no_other_as_it_was(name: str, trouble: float) -> None:
    touched, alone = twins(COVERED[name])
    gradients = gradients_of(touched, 4)
    count = len(gradients)
    expected = fused_step(alone, gradients, LOSSES, SCALES, reply=Reply.INCREMENT)
    gradients[1] = gradients[1].clone()
    gradients[1][-1] = trouble
    before = touched.state.clone()
    answers = fused_step(touched, gradients, LOSSES, SCALES, reply=Reply.INCREMENT)
    assert answers.stepped.outcome.tolist() == [
        Fate.NON_FINITE_GRADIENT if k == 1 else Fate.APPLIED for k in range(count)
    ]
    for kind, rows in touched.state.buffers().items():
        old, new, other = (
            touched.vectors_of(each) for each in (before.buffers()[kind], rows, alone.state.buffers()[kind])
        )
        for session in range(count):
            assert torch.equal(new[session], old[session] if session == 1 else other[session])
    assert torch.equal(touched.state.scalars[1].nan_to_num(9), before.scalars[1].nan_to_num(9))
    for session in {*range(count)} - {1}:
        assert torch.equal(answers.replies[session], expected.replies[session])
    assert (answers.replies[1] == answers.replies[1][0]).all()  # as it was before


@pytest.mark.parametrize("name", COVERED)
def test_what_cannot_be_proven_is_not_touched_and_what_can_be_stays_finite(name: str) -> None:
    """States and gradients of every magnitude, each alone with the session's first, second or third step."""
    hamiltonian = COVERED[name]
    fates = set()
    for exponent, turns in itertools.product((-40, -12, 0, 6, 12, 18, 25, 30, 37), (1, 3)):
        batch, _ = twins(hamiltonian)
        for turn in range(turns):
            scale = 10.0**exponent if turn == turns - 1 else 1.0
            gradients = [each * scale for each in gradients_of(batch, turn)]
            count = len(gradients)
            before = bits_of(batch)
            answers = fused_step(batch, gradients, LOSSES[:count], SCALES[:count])
            for session, fate in enumerate(answers.stepped.outcome.tolist()):
                fates.add(fate)
                for rows in batch.state.buffers().values():
                    assert batch.vectors_of(rows)[session].isfinite().all(), (exponent, Fate(fate))
            if (answers.stepped.outcome == Fate.UNPROVEN).all():
                assert bits_of(batch) == before
            assert exponent > 6 or (answers.stepped.outcome == Fate.APPLIED).all()
    assert fates == {Fate.APPLIED, Fate.UNPROVEN}


@pytest.mark.parametrize("bound", [np.inf, np.nan, 1e31])
def test_a_session_of_unknown_range_is_not_touched(bound: float) -> None:
    batch, _ = twins(COVERED["adamw"])
    before = bits_of(batch)
    answers = fused_step(batch, gradients_of(batch, 3), LOSSES, SCALES, bounds=[bound] * len(SIZES))
    assert (answers.stepped.outcome == Fate.UNPROVEN).all()
    assert bits_of(batch) == before


WIDE = ("learning_rate", "gradient_gain", "epsilon", "second_moment_gain", "thermal_decay", "decoupled_decay")


@pytest.mark.parametrize(
    "name",
    ["adamw", "adagrad on the kick", "relativistic adam", "rmsprop centered", "sgd nesterov", "drawn 0", "drawn 6"],
)
def test_proof_holds_for_numbers_of_any_size(name: str) -> None:
    """Half of the elements never saw a gradient, so that nothing but ε divides their momentum."""
    source, applied = random.Random(name), 0
    for trial in range(150):
        batch, _ = twins(MEMBERS[name])
        for field in source.sample(WIDE, 2):
            column = COEFFICIENTS.index(field)
            batch.coefficients[:, column] *= 10.0 ** source.uniform(-3, 36 if field != "epsilon" else 0)
            if field == "epsilon":
                batch.coefficients[:, column] = 10.0 ** source.uniform(-37, 0)
        count = len(batch.hamiltonians)
        gradients = [each * 10.0 ** source.uniform(-20, 15) for each in gradients_of(batch, trial)]
        for kind, rows in batch.state.buffers().items():
            size = 10.0 ** source.uniform(-10, 15)
            filled = batch.rows_of([(each * size).abs() for each in gradients_of(batch, trial + 1)])
            rows.copy_(filled)
            if kind in (StateBuffer.SECOND_MOMENT, StateBuffer.FIRST_MOMENT):
                rows[:, ::2] = 0
        for gradient, places in zip(gradients, batch.vectors_of(torch.ones_like(rows).cumsum(1) % 2), strict=True):
            gradient[places == 1] = 0
        batch.state.scalars[:, SCALARS.index("step")] = source.choice([0, 5])
        answers = fused_step(batch, gradients, LOSSES[:count], SCALES[:count])
        for session in np.flatnonzero(answers.stepped.outcome == Fate.APPLIED):
            applied += 1
            for kind, rows in batch.state.buffers().items():
                assert batch.vectors_of(rows)[session].isfinite().all(), kind
    assert 50 < applied < 150 * count  # some were proven, some were not


@pytest.mark.parametrize(("learning_rate", "fate"), [(1.0, Fate.APPLIED), (1e12, Fate.UNPROVEN)])
def test_a_momentum_that_only_epsilon_divides_is_bounded_with_the_learning_rate(
    learning_rate: float, fate: Fate
) -> None:
    batch = batch_of(resolve("adam", {"eps": 2e-37}), [torch.full((64,), 1e-10)])
    batch.coefficients[:, COEFFICIENTS.index("learning_rate")] = learning_rate
    batch.state.momentum += 1e-10
    assert fused_step(batch, [torch.zeros(64)], [0.0], [1.0]).stepped.outcome[0] == fate


@pytest.mark.parametrize(("size", "fate"), [(1.0, Fate.APPLIED), (1e20, Fate.UNPROVEN)])
def test_a_gradient_is_bounded_with_its_weight(size: float, fate: Fate) -> None:
    batch = batch_of(resolve("sgd", {"momentum": 0.9, "lr": 1e-20}), [torch.ones(64)])
    batch.coefficients[:, COEFFICIENTS.index("gradient_gain")] = 1e25
    assert fused_step(batch, [torch.full((64,), size)], [0.0], [1.0]).stepped.outcome[0] == fate


LARGE = (300_001, 5, 2048, 4097, 150_000, 1, 90_000)


def run_large(
    name: str, pool: Pool | None, sessions: range = range(len(LARGE)), dtype: Dtype = Dtype.FLOAT32
) -> list[list[bytes]]:
    """Per session all bits after two steps."""
    hamiltonian = COVERED[name]
    by_tensor = hamiltonian.family(SHAPES).by_tensor
    positions = [draw(1 + k, LARGE[k], dtype=torch.float32, device=CPU)[0] for k in sessions]
    batch = batch_of([hamiltonian] * len(positions), positions, row_elements=2048)
    assert not by_tensor
    for turn in range(2):
        gradients = [draw(9 * turn + k, LARGE[k], dtype=TORCH[dtype], device=CPU)[0] for k in sessions]
        answers = fused_step(
            batch, gradients, [0.1 * k for k in sessions], [1 + 0.1 * k for k in sessions],
            reply=Reply.INCREMENT, reply_dtype=dtype, pool=pool,
        )  # fmt: skip
        assert (answers.stepped.outcome == Fate.APPLIED).all()
    return [
        [
            *(batch.vectors_of(rows)[k].numpy().tobytes() for rows in batch.state.buffers().values()),
            batch.state.scalars[k].numpy().tobytes(),
            answers.stepped.samples[k].tobytes(),
            answers.replies[k].view(torch.int16).numpy().tobytes(),
        ]
        for k in range(len(positions))
    ]


@pytest.mark.parametrize("name", ["adamw", "rgd", "rgd euler", "lookahead by coordinate", "rgd nesterov"])
def test_bits_of_a_session_depend_neither_on_the_batch_nor_on_threads(name: str) -> None:
    together = run_large(name, None)
    for threads in (2, 3):
        pool = Pool(threads)
        try:
            assert run_large(name, pool) == together
            assert run_large(name, pool, dtype=Dtype.BFLOAT16) == run_large(name, None, dtype=Dtype.BFLOAT16)
        finally:
            pool.close()
    for session in range(len(LARGE)):
        assert run_large(name, None, range(session, session + 1)) == [together[session]]


def test_a_large_session_with_a_bad_gradient_is_left_alone_by_all_threads() -> None:
    pool = Pool(2)
    batch = batch_of(COVERED["rgd"], [torch.ones(600_000)], row_elements=2048)
    before = bits_of(batch)
    gradient = torch.ones(600_000)
    gradient[-1] = torch.inf
    answers = fused_step(batch, [gradient], [0.0], [1.0], pool=pool)
    pool.close()
    assert answers.stepped.outcome[0] == Fate.NON_FINITE_GRADIENT
    assert bits_of(batch) == before


def test_a_pool_waits_for_all_shares_and_tells_what_went_wrong() -> None:
    pool, done = Pool(3), []

    def fail() -> None:
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        pool.run([fail, lambda: done.append(1), lambda: done.append(2)])
    assert sorted(done) == [1, 2]
    with pytest.raises(ValueError, match="on purpose"):
        pool.run([lambda: done.append(3), fail])
    assert 3 in done
    pool.close()
