"""Which timesteps a run keeps, as each library reads them."""

import pytest

from fastdiff import GaussianProcess, schedules
from fastdiff.processes import spacing
from tests.processes.golden import load

CASES = load("spaced")["space_timesteps"]


def test_sections_are_the_recorded_ones():
    """space_timesteps of improved-diffusion: "250", "10,15,20", lists, "ddim50", and what it refuses."""
    assert len(CASES) >= 20 and sum(case["error"] is not None for case in CASES) == 1
    for case in CASES:
        T, counts = case["num_timesteps"], case["section_counts"]
        if case["error"] is None:
            assert spacing.sections(T, counts).tolist() == case["timesteps"]
        else:
            with pytest.raises(ValueError, match=r"timesteps must ask for at most|timesteps must be 'ddim' and"):
                spacing.sections(T, counts)


def test_texts_reach_respacing():
    process = GaussianProcess(schedules.linear(1000))
    assert process.respace("ddim50").timestep_map.tolist() == list(range(0, 1000, 20))
    assert process.respace("4").timestep_map.tolist() == process.respace(4).timestep_map.tolist() == [0, 333, 666, 999]
    assert len(process.nodes("10,15,20").time) == 45


@pytest.mark.parametrize("call, message", [
    (lambda: spacing.sections(100, "ten"), "timesteps must be a text as '250', '10,15,20' or 'ddim50', got 'ten'"),
    (lambda: spacing.sections(100, "10,"), "timesteps must be a text as"),
    (lambda: spacing.sections(100, "ddimx"), "timesteps must be a text as"),
    (lambda: spacing.sections(100, "60,10"), "timesteps must ask for at most 50 steps in section 0, got 60"),
    (lambda: spacing.sections(100, "0,0"), "timesteps must hold at least one timestep, got none"),
    (lambda: spacing.leading(100, 0), r"steps must be an int in \[1, 100\], got 0"),
    (lambda: spacing.trailing(100, 101), r"steps must be an int in \[1, 100\], got 101"),
    (lambda: spacing.linspace(100, True), r"steps must be an int in \[1, 100\], got True"),
])  # fmt: skip
def test_bad_spacings(call, message):
    with pytest.raises(ValueError, match=message):
        call()
