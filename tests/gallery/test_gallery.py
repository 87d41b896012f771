"""The gallery: each picture can be drawn, is shown and is explained; physics holds in the numbers behind it."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gallery import __main__ as command
from gallery import energy, family_tree, paths, phase_portrait, problems, recipes, speed_limit, style, thermal
from gallery.roster import PICTURES
from hermosis_server.dynamics import RECIPES, Constant, Exponential, Full, Kronecker, Scheme, resolve

SHOWN = Path(__file__).resolve().parents[2] / "docs" / "gallery"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", PICTURES)
def test_each_picture_can_be_drawn(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["--quick", "--out", str(tmp_path), "--only", name])
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.png"]
    assert f"{name}.png" in capsys.readouterr().out


def test_pictures_made_committed_and_explained_are_the_same() -> None:
    made = {f"{name}.png" for name in PICTURES}
    committed = {path.name for path in SHOWN.iterdir()} - {"README.md"}
    explained = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", (SHOWN / "README.md").read_text())
    assert committed == made
    assert sorted(explained) == sorted(made)


def test_committed_pictures_are_small() -> None:
    sizes = [path.stat().st_size for path in SHOWN.glob("*.png")]
    assert max(sizes) < 250_000
    assert sum(sizes) < 2_000_000


def test_code_named_in_the_explanations_exists() -> None:
    named = re.findall(r"`gallery/(\w+)\.py:\s+(\w+)`", (SHOWN / "README.md").read_text())
    assert len(named) >= 6
    for module, function in named:
        assert re.search(rf"^def {function}\(", (SHOWN.parents[1] / f"gallery/{module}.py").read_text(), re.MULTILINE)


def test_a_picture_drawn_twice_has_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("first", "second"):
        list(command.draw(["family-tree"], tmp_path / folder, quick=True))
    assert (tmp_path / "first/family-tree.png").read_bytes() == (tmp_path / "second/family-tree.png").read_bytes()


def test_quick_pictures_leave_the_committed_ones_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "FOLDER", tmp_path / "committed")
    monkeypatch.setattr(command.tempfile, "mkdtemp", lambda prefix: str(tmp_path / prefix))
    command.main(["--quick", "--only", "family-tree"])
    assert [path.name for path in tmp_path.iterdir()] == ["hermosis-gallery-"]


def test_unknown_picture_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--only", "mona-lisa"])
    assert "rosenbrock" in capsys.readouterr().err


def test_every_recipe_has_a_colour_of_its_own() -> None:
    assert set(style.RECIPE_COLORS) == set(RECIPES)
    assert len(set(style.RECIPE_COLORS.values())) == len(RECIPES)


def test_labels_move_apart_and_no_further() -> None:
    assert style.spread([0.1, 0.5, 0.52], 0.1) == pytest.approx([0.1, 0.46, 0.56])
    assert style.spread([0.2, 0.4], 0.1) == [0.2, 0.4]


def test_constant_beta_keeps_the_orbit_and_cooling_does_not() -> None:
    def level(profile: Constant | Exponential) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        found = phase_portrait.orbits(profile, [(1.75, 0.0), (-0.3, 0.1)], 10.0)
        return phase_portrait.energy(found.position[:, :, 0], found.momentum[:, :, 0])

    still, cooled = level(Constant()), level(Exponential(cooling_rate=0.15))
    assert np.abs(still / still[0] - 1).max() < 0.01
    assert (cooled[-1] < 0.6 * cooled[0]).all()


def test_momentum_at_the_start_is_where_the_orbit_starts() -> None:
    """A quarter of a turn at the bottom of a well, where the frequency is √2."""
    found = phase_portrait.orbits(Constant(), [(1.0, 0.01)], math.pi / 2 / math.sqrt(2))
    assert found.position[-1, 0, 0] - 1 == pytest.approx(-0.01 / math.sqrt(2), rel=0.02)
    assert abs(found.momentum[-1, 0, 0]) < 4e-4


def test_basins_mirror_each_other() -> None:
    ends = phase_portrait.basins(11, 8, 40.0)
    assert np.abs(np.abs(ends) - 1).max() < 0.2
    assert np.array_equal(ends > 0, ends[::-1, ::-1] < 0) or np.abs(ends).min() < 0.1


@pytest.mark.parametrize(
    ("scheme", "order"), [(Scheme.SYMPLECTIC_EULER, 1), (Scheme.LEAPFROG, 2), (Scheme.CONFORMAL, 2)]
)
def test_energy_drifts_at_the_order_of_the_scheme_and_its_defect_at_the_second(scheme: Scheme, order: int) -> None:
    sizes = [0.2, 0.1, 0.05]
    drift, defect = energy.drifts(scheme, sizes, 3.0)
    assert order - 0.2 < energy.slope(sizes, drift) < order + 0.3
    assert 1.8 < energy.slope(sizes, defect) < 2.3


def test_weights_of_past_gradients_are_those_of_the_profile() -> None:
    steps, mu = 20, 0.95
    shares = {name: thermal.weights(thermal.impulses(profile, steps)) for name, profile in thermal.PROFILES.items()}
    for share in shares.values():
        assert share.sum() == pytest.approx(1, rel=1e-12)
    assert shares["constant"] == pytest.approx(np.full(steps, 1 / steps))
    # Each share is the integral of β over its step.
    time, masses = np.arange(steps + 1), {}
    masses["linear"] = time + 0.25 * time**2 / 2
    masses["power, p = 1"], masses["power, p = 3"] = (1 + time / 8) ** 2, (1 + time / 8) ** 4
    for name, mass in masses.items():
        assert shares[name] == pytest.approx(np.diff(mass) / (mass[-1] - mass[0]), rel=1e-9)
    assert shares["exponential"] == pytest.approx((1 - mu) * mu ** np.arange(steps)[::-1] / (1 - mu**steps))


def test_feedback_settles_at_the_rate_that_the_picture_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thermal, "made_up_loss", lambda step: 1.0)
    rate = thermal.impulses(thermal.FEEDBACK, 80).sample("cooling_rate")[-1, 0]
    assert rate == pytest.approx(math.sqrt(thermal.GAMMA**2 + 2 * thermal.SIGMA), rel=0.01)


def test_relativistic_speed_stays_below_the_limit_and_all_agree_for_small_momenta() -> None:
    momenta = np.array([1e-3, 0.5, 2.0, 1e6])
    for kinetic in speed_limit.KINETICS.values():
        assert speed_limit.speeds(kinetic, momenta)[0] == pytest.approx(1e-3, rel=1e-5)
    assert speed_limit.speeds(speed_limit.KINETICS["relativistic"], momenta).max() <= 1
    truncated = speed_limit.speeds(speed_limit.KINETICS["truncated"], momenta)
    assert truncated[2:] == pytest.approx(math.sqrt(2 / 3) * 2 / 3), "the height at which the picture's dots leave it"


def test_a_limit_that_cools_bounds_the_journey() -> None:
    steps, gamma = 80, -math.log(speed_limit.RETENTION)
    for nu in (0.0, 0.5, 1.0):
        run = speed_limit.race(nu, steps)
        assert run.sample("step_norm").max() <= speed_limit.MAX_STEP * (1 + 1e-12)
        travelled = run.position[-1, 0, 0]
        if nu:
            assert travelled < speed_limit.MAX_STEP / math.expm1(nu * gamma)
        else:
            assert travelled == pytest.approx(steps * speed_limit.MAX_STEP, rel=0.01)


def test_family_tree_has_every_recipe_where_its_settings_lead() -> None:
    def leaves(node: family_tree.Node) -> list[str]:
        below = [name for child in node.children for name in leaves(child)]
        return below or [node.recipe]

    root = family_tree.grown()
    assert set(leaves(root)) == set(RECIPES)
    branches = {child.text: set(leaves(child)) for child in root.children}
    assert branches["power"] == {"nesterov_ode"}
    assert {"sgd", "rmsprop", "adagrad"} == branches["exponential,\nμ = 0"]


def test_a_path_begins_at_its_start_and_the_best_rate_is_chosen() -> None:
    steps = 12
    one = recipes.run("hermosis", problems.rosenbrock, (-1.2, 1.0), steps)
    assert one.position.shape == (steps + 1, 2)
    assert one.loss.shape == (steps + 1,)
    assert one.position[0].tolist() == [-1.2, 1.0]
    for step in (0, steps):
        assert one.loss[step] == float(problems.rosenbrock(torch.tensor(one.position[step])))
    assert one.loss.max() <= 2 * one.loss[0]


def test_a_column_has_the_full_metric() -> None:
    hermosis = resolve("hermosis", {"metric": "kronecker", "refresh_steps": 1})
    assert isinstance(hermosis.metric, Kronecker)
    learned = {name: getattr(hermosis.metric, name) for name in ("second_moment_decay", "epsilon", "normalise")}
    problem, start = problems.problem_of(problems.tilted_valley), [[-2.4, -0.6]]
    column = paths.follow(hermosis, problem, start, 20, column=True).position
    full = paths.follow(replace(hermosis, metric=Full(by_tensor=True, **learned)), problem, start, 20).position
    vector = paths.follow(hermosis, problem, start, 20).position
    assert column == pytest.approx(full, rel=1e-12)
    assert np.abs(column - vector).max() > 0.02


def test_ends_of_steps_and_published_points_part_by_half_a_drift() -> None:
    hamiltonian = phase_portrait.newtonian(Constant(), 0.1)
    problem = problems.problem_of(problems.pendulum)
    ends, published = (paths.follow(hamiltonian, problem, [[2.0]], 3, ends=flag) for flag in (True, False))
    assert np.array_equal(ends.momentum, published.momentum)
    assert published.position[1:] == pytest.approx(ends.position[1:] - 0.05 * ends.momentum[1:])


def test_folder_that_cannot_be_made_is_said_before_anything_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as ended:
        command.main(["--quick", "--out", str(tmp_path / "file" / "pictures")])
    assert ended.value.code == 2
    assert "cannot make the folder" in capsys.readouterr().err
