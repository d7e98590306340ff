"""`fastdiff evaluate figures`: PNGs and numbers, and what is refused."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from fastdiff import GaussianProcess, cli, schedules
from fastdiff.cli import figures
from fastdiff.evaluation import gradient_noise, plots
from fastdiff.evaluation.digit_features import DigitFeatures
from tests.cli.runs import save_images, train

pytestmark = pytest.mark.skipif(not plots.available(), reason="without matplotlib")
SHORT = ["--steps=2", "--sample-every=0", "--no-tensorboard"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of digits with a linear and a cosine schedule, and one of other images."""
    folder = tmp_path_factory.mktemp("runs")
    for schedule in ("linear", "cosine"):
        assert train("digits", folder / schedule, *SHORT, f"--schedule={schedule}") == 0
    assert train(save_images(folder / "a.npz"), folder / "other", *SHORT) == 0
    return folder


def test_figures(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(DigitFeatures, "trained", classmethod(lambda cls: cls().requires_grad_(False)))
    runs = [str(folder / "linear"), str(folder / "cosine")]
    assert cli.main(["evaluate", "figures", *runs, "-n8", "--batches=3", "--out", str(tmp_path / "f")]) == 0
    for name in figures.FIGURES:
        assert (tmp_path / "f" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    found = json.loads((tmp_path / "f" / "figures.json").read_text())
    process = GaussianProcess(schedules.cosine(25))
    np.testing.assert_allclose(found["beta-ratio"]["cosine"], process.posterior_variance / process.betas)
    assert found["skipping"]["skipped"] == [0.0, 0.1, 0.2, 0.3, 0.4] and len(found["skipping"]["linear"]) == 5
    assert len(set(found["skipping"]["linear"])) == 5
    assert found["gradient-noise"]["cosine"].keys() == {"uniform", "importance"}


def test_a_scale_that_is_no_number(folder, tmp_path, monkeypatch):
    """Where the noise hides the gradient; JSON has no NaN."""
    monkeypatch.setattr(gradient_noise, "noise_scale", lambda *_: math.nan)
    words = ["evaluate", "figures", str(folder / "other"), "--figure=gradient-noise", "--batches=2"]
    assert cli.main([*words, "--out", str(tmp_path / "f")]) == 0
    found = json.loads((tmp_path / "f" / "figures.json").read_text(), parse_constant=pytest.fail)
    assert found == {"gradient-noise": {"other": {"uniform": None, "importance": None}}}


def test_a_broken_image_is_skipped_as_in_the_run(tmp_path):
    for i in range(9):
        Image.fromarray(np.full((4, 4), 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "5.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="skipped: "):
        assert train(tmp_path, tmp_path / "run", *SHORT, "--on-error=skip") == 0
        words = ["evaluate", "figures", str(tmp_path / "run"), "--figure=gradient-noise", "--batches=2"]
        assert cli.main([*words, "--out", str(tmp_path / "f")]) == 0


@pytest.mark.parametrize("words, message", [
    (["figures", "{}/other", "--figure=skipping"], "run must be of digits, whose features are known, for skipping"),
    (["figures", "{}/other", "{}/other"], "run must be directories of different names, got"),
    (["figures", "{}/other", "--timesteps=5"], "timesteps must not be given for figures, got 5"),
    (["figures", "{}/linear", "-n1"], "n must be at least 2 for skipping, whose distances take covariances, got 1"),
    (["figures", "{}/other", "--batches=1"], "batches must be at least 2, got 1"),
    (["bpd", "{}/other", "{}/linear"], "run must be one directory for bpd, got 2"),
    (["bpd", "{}/other", "--figure=skipping"], "figure must not be given for bpd, got ['skipping']"),
])  # fmt: skip
def test_refusals(folder, tmp_path, capsys, words, message):
    words = [word.replace("{}", str(folder)) for word in words]
    assert cli.main(["evaluate", *words, "--out", str(tmp_path / "f")]) == 2
    assert message in capsys.readouterr().err
