"""Schedules: the published values, both ends met exactly, and never beyond them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import topogen as tg
from topogen.errors import SpecError

SHAPES = ("cubic", "linear", "cosine", "sigmoid")


def test_zhu_gupta_sparsities():
    """s_i = 0, s_f = 0.9, ten steps: the values of arXiv:1710.01878, equation 1, to four places."""
    schedule = tg.cubic(initial=0.0, final=0.9, begin_step=0, end_step=10)
    published = [0, 0.2439, 0.4392, 0.5913, 0.7056, 0.7875, 0.8424, 0.8757, 0.8928, 0.8991, 0.9]
    assert [schedule(step) for step in range(11)] == pytest.approx(published, abs=1e-12)


def test_density_and_sparsity_are_one_formula():
    density = tg.cubic(initial=1.0, final=0.1, begin_step=100, end_step=900)
    sparsity = tg.cubic(initial=0.0, final=0.9, begin_step=100, end_step=900)
    for step in range(0, 1000, 7):
        assert density(step) == pytest.approx(1 - sparsity(step), abs=1e-15)


def test_rigl_drop_fractions():
    schedule = tg.cosine(initial=0.3, end_step=1000)
    assert [schedule(step) for step in (0, 250, 500, 750, 1000)] == pytest.approx(
        [0.3, 0.256066, 0.15, 0.043934, 0.0], abs=5e-7
    )


@pytest.mark.parametrize(("make", "middle"), [(tg.linear, 0.5), (tg.cosine, 0.5), (tg.sigmoid, 0.5), (tg.cubic, 0.875)])
def test_half_way(make, middle):
    assert make(initial=0.0, final=1.0, begin_step=10, end_step=30)(20) == pytest.approx(middle, abs=1e-15)


def test_a_sigmoid_is_steepest_in_the_middle():
    schedule = tg.sigmoid(initial=1.0, final=0.0, end_step=100)
    steps = [schedule(t) - schedule(t + 1) for t in range(100)]
    assert steps.index(max(steps)) in (49, 50)
    assert steps[0] < max(steps) / 20


@given(st.sampled_from(SHAPES), st.floats(0, 1), st.floats(0, 1), st.integers(0, 50), st.integers(0, 50))
def test_it_goes_one_way_from_end_to_end(shape, initial, final, begin, length):
    schedule = tg.Schedule(shape=shape, initial=initial, final=final, begin_step=begin, end_step=begin + length)
    values = [schedule(step) for step in range(begin + length + 3)]
    assert values[-1] == final
    assert values[0] == (initial if begin or length else final)
    rising = [b - a for a, b in zip(values, values[1:], strict=False)]
    slack = 1e-15
    assert all(d >= -slack for d in rising) or all(d <= slack for d in rising)


def test_a_plot_passes_through_the_values():
    schedule = tg.cosine(initial=0.3, end_step=1000)
    (line,) = schedule.plot(label="drop fraction").lines
    assert all(y == schedule(int(x)) for x, y in zip(*line.get_data(), strict=True))
    assert max(line.get_xdata()) > 1000


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ({"shape": "square"}, "The 'shape' parameter of Schedule must be 'cubic' or 'linear' or 'cosine' or 'sigmoid'"),
        ({"initial": -0.1}, "The 'initial' parameter of Schedule must be a finite number in [0, inf). Got -0.1."),
        ({"final": float("nan")}, "The 'final' parameter of Schedule must be a finite number in [0, inf). Got nan."),
        ({"begin_step": -1}, "The 'begin_step' parameter of Schedule must be an int >= 0. Got -1."),
        ({"end_step": 4}, "The 'end_step' parameter of Schedule must be at least begin_step, 5. Got 4."),
    ],
)
def test_refusals(broken, sentence):
    good = {"shape": "cubic", "initial": 1.0, "final": 0.1, "begin_step": 5, "end_step": 9}
    with pytest.raises(SpecError, match=re.escape(sentence)):
        tg.Schedule(**good | broken)
