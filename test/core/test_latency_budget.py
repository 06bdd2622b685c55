"""The latency budget's controller meets what can be met on simulated models, says what cannot, and comes to rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from tar_vis_core.latency_budget import HIGHEST, LatencyBudget

LAYERS = 9
Plant = Callable[[float, np.random.Generator], int]


def step_like(bias: float, rng: np.random.Generator) -> int:
    """All routed layers run below one bias, and none from it on."""
    return LAYERS if bias < 0.35 else 1


def clustered(bias: float, rng: np.random.Generator) -> int:
    """Execute probabilities as trained routers give them: close together."""
    probability = rng.uniform(0.48, 0.58, LAYERS - 1)
    return 1 + int((np.log(probability / (1 - probability)) >= bias).sum())


def gradual(bias: float, rng: np.random.Generator) -> int:
    return int(np.clip(round(LAYERS - 2 * bias + rng.normal(0, 0.5)), 1, LAYERS))


@dataclass
class Run:
    bias: np.ndarray       # (frames,) that each frame ran with
    layers: np.ndarray
    ms: np.ndarray
    routed: np.ndarray
    controller: LatencyBudget

    def p95(self, first: int, last: int | None = None) -> float:
        return float(np.percentile(self.ms[first:last], 95))


def simulate(plant: Plant, budget_ms: float, frames: int, noise: float = 0.05, seed: int = 0, refresh: int = 0,
             load: Callable[[int], float] = lambda frame: 1.0, spikes: float = 0.0) -> Run:
    """A step of 40 ms and 3 ms a layer, times lognormal noise and the load; now and then one of 100 ms more."""
    rng, controller = np.random.default_rng(seed), LatencyBudget(budget_ms)
    bias, rows = 0.0, []
    for frame in range(frames):
        routed = frame > 0 and not (refresh and frame % refresh == 0)
        layers = plant(bias, rng) if routed else LAYERS
        ms = (40 + 3 * layers) * load(frame) * np.exp(rng.normal(0, noise)) + 100 * (rng.random() < spikes)
        rows.append((bias, layers, ms, routed))
        bias = controller.update(ms, layers, LAYERS, routed)
    return Run(*np.array(rows).T, controller)


def turns(bias: np.ndarray) -> int:
    """How often a rise follows a fall, or a fall a rise."""
    moves = np.diff(bias)
    moves = np.sign(moves[moves != 0])
    return int((moves[1:] != moves[:-1]).sum())


@pytest.mark.parametrize('seed', range(2))
@pytest.mark.parametrize(('plant', 'budget_ms', 'noise', 'least_layers'), [
    (step_like, 55, 0.02, 1), (step_like, 62, 0.10, 1), (clustered, 60, 0.05, 2), (clustered, 66, 0.10, 2),
    (gradual, 60, 0.05, 3), (gradual, 70, 0.15, 3)])
def test_a_budget_that_can_be_met_is_met_with_layers_left_and_without_oscillation(plant, budget_ms, noise,
                                                                                  least_layers, seed):
    run = simulate(plant, budget_ms, 8000, noise, seed)
    assert run.p95(2000) <= budget_ms < simulate(plant, 1000, 2000, noise, seed).p95(0)
    assert run.layers[2000:].mean() >= least_layers
    assert run.controller.report == ''
    assert turns(run.bias[2000:]) <= 10


def test_tries_on_a_steady_plant_become_rarer_and_rarer():
    run = simulate(step_like, 55, 40_000, 0.02)
    early, late = run.bias[:6000], run.bias[20_000:]
    assert 0 < turns(late) <= 4 < turns(early)


def test_the_bias_moves_at_once_when_frames_are_late_and_only_after_a_hundred_when_they_are_early():
    controller = LatencyBudget(50)
    biases = [controller.update(60, 9, 9) for _ in range(11)]
    assert biases == [0.0] * 10 + [0.02]
    for _ in range(100):
        biases.append(controller.update(40, 1, 9))
    assert biases[11:] == [0.02] * 99 + [0.0]


def test_inside_the_band_below_the_budget_nothing_moves():
    controller = LatencyBudget(50)
    for _ in range(11):
        controller.update(60, 9, 9)
    assert {controller.update(47, 5, 9) for _ in range(3000)} == {0.02}


def test_strides_grow_while_frames_stay_late_and_begin_with_a_fifth_of_a_large_bias():
    controller = LatencyBudget(50)
    late = [[controller.update(60, 9, 9) for _ in range(11)][-1] for _ in range(7)]
    assert late == pytest.approx([0.02, 0.06, 0.14, 0.30, 0.62, 1.26, 2.54])
    for _ in range(100):
        controller.update(47, 2, 9)     # inside the band: the search is over
    assert [controller.update(60, 2, 9) for _ in range(11)][-1] == pytest.approx(1.2 * 2.54)


def test_a_budget_with_room_leaves_the_routers_alone():
    run = simulate(clustered, 100, 5000)
    assert not run.bias.any() and run.controller.report == ''


def test_at_most_one_in_twenty_may_be_late():
    def ends_at(every: int) -> float:
        controller = LatencyBudget(50)
        return [controller.update(90 if n % every == 0 else 40, 9, 9) for n in range(4000)][-1]

    assert ends_at(21) == 0 < HIGHEST == ends_at(15)


def test_an_impossible_budget_skips_all_that_can_be_and_says_so_with_the_measured_time():
    run = simulate(clustered, 30, 3000)
    assert run.bias[-1] == HIGHEST and run.layers[500:].max() == 1
    assert turns(run.bias) == 0
    assert 'budget of 30 ms cannot be met' in run.controller.report
    assert '1 of 9 layers' in run.controller.report
    measured = float(run.controller.report.partition('took ')[2].split()[0])
    assert measured == pytest.approx(run.p95(500), rel=0.1)


def test_what_cannot_be_met_is_met_again_when_the_load_falls():
    run = simulate(clustered, 60, 8000, load=lambda frame: 2.0 if frame < 2000 else 1.0)
    assert (run.bias[1500:2000] == HIGHEST).all()
    assert run.controller.report == '' and run.p95(4000) <= 60
    assert run.layers[5000:].mean() > 2, 'layers run again'


def test_a_load_that_jumps_is_followed_with_few_turns():
    run = simulate(clustered, 70, 20_000, load=lambda frame: 1.3 if 5000 <= frame < 10_000 else 1.0)
    for first, last in ((0, 5000), (5500, 10_000), (12_000, 20_000)):
        assert run.p95(first, last) <= 70
    assert run.layers[6000:10_000].mean() < run.layers[14_000:].mean() - 1
    assert turns(run.bias) <= 10


def test_rare_slow_frames_that_no_routing_prevents_cost_few_layers():
    run = simulate(clustered, 90, 15_000, spikes=0.02)
    untouched = simulate(clustered, 1000, 15_000, spikes=0.02)
    assert run.layers.mean() > untouched.layers.mean() - 0.3
    assert turns(run.bias) <= 10


def test_plain_passes_count_while_they_are_few():
    run = simulate(clustered, 60, 12_000, 0.03, refresh=40)
    assert run.p95(2000) <= 60 and run.controller.report == ''
    assert (run.ms[run.routed == 0] > 60).mean() > 0.9


def test_plain_passes_that_alone_break_the_budget_are_left_out_and_reported():
    run = simulate(clustered, 60, 12_000, 0.03, refresh=10)
    assert run.p95(2000) > 60
    routed = run.routed[2000:] == 1
    assert np.percentile(run.ms[2000:][routed], 95) <= 60
    assert run.layers[2000:][routed].mean() > 2, 'not all is skipped for what skipping cannot change'
    assert 'one frame in 10' in run.controller.report and 'refresh_frames' in run.controller.report
    assert turns(run.bias) <= 10


def test_without_routers_the_budget_says_that_nothing_can_be_skipped():
    controller = LatencyBudget(50)
    assert {controller.update(60, 9, 9, routed=False) for _ in range(500)} == {0.0}
    assert 'no router is asked' in controller.report
    controller = LatencyBudget(70)
    assert {controller.update(60, 9, 9, routed=False) for _ in range(500)} == {0.0}
    assert controller.report == ''


def test_the_same_times_give_the_same_biases():
    one, two = (simulate(clustered, 60, 3000, seed=5) for _ in range(2))
    assert np.array_equal(one.bias, two.bias)


@pytest.mark.parametrize('budget_ms', [0, -1, float('nan'), float('inf')])
def test_a_budget_is_a_number_above_zero(budget_ms):
    with pytest.raises(ValueError, match='expected a number above 0'):
        LatencyBudget(budget_ms)
