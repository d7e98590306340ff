"""`fastdiff convert`: a checkpoint in, another library's out."""

import json

import pytest
import torch
from safetensors.torch import load_file

from fastdiff import load_unet
from fastdiff.cli import main
from tests.models import recorded


@pytest.fixture
def checkpoint(tmp_path):
    """improved-diffusion's, in its trainer's dict."""
    weights = recorded.fixture("improved_b")["sd"]
    average = {key: value + 1 for key, value in weights.items()}
    torch.save({"model": weights, "ema": average}, tmp_path / "in.pt")
    return tmp_path / "in.pt"


OPTIONS = ["--option", "image_size=16", "--option", "num_heads=2"]


@pytest.mark.parametrize("ema", [False, True])
def test_to_ours_and_back(checkpoint, ema, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(checkpoint), str(out), *OPTIONS, *["--ema"] * ema]) == 0
    assert capsys.readouterr().out == f"702,499 parameters: {out} (fastdiff)\n"
    assert load_unet(out).config == recorded.network("improved_b").config
    assert main(["convert", str(out), str(tmp_path / "back.pt"), "--dialect", "openai"]) == 0
    back, weights = torch.load(tmp_path / "back.pt", weights_only=True), recorded.fixture("improved_b")["sd"]
    assert back.keys() == weights.keys() and all(torch.equal(back[key], value + ema) for key, value in weights.items())


def test_to_a_folder_of_diffusers(tmp_path):
    torch.save(recorded.fixture("ddpm_like")["sd"], tmp_path / "in.bin")
    (tmp_path / "config.json").write_text(json.dumps(recorded.options("ddpm_like")))
    argv = ["convert", str(tmp_path / "in.bin"), str(tmp_path / "out"), "--from", "diffusers", "--dialect", "diffusers"]
    assert main([*argv, "--config", str(tmp_path / "config.json"), "--option", "dropout=0.1"]) == 0
    found = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    assert found.keys() == recorded.fixture("ddpm_like")["sd"].keys()
    assert load_unet(tmp_path / "out").config.dropout == 0.1


@pytest.mark.parametrize("argv, message", [
    ([], "fastdiff: config must say what the weights cannot: image_size, num_heads or num_head_channels"),
    ([*OPTIONS, "--dialect", "ddpm"], "fastdiff: dialect must be one that knows this network, got 'ddpm'"),
    ([*OPTIONS, "--option", "norm=rms"], "config must hold options of the dialect"),
    ([*OPTIONS, "--config", "nowhere.json"], "No such file or directory: 'nowhere.json'"),
])  # fmt: skip
def test_user_errors(checkpoint, argv, message, tmp_path, capsys):
    assert main(["convert", str(checkpoint), str(tmp_path / "out.pt"), *argv]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out.pt").exists()


def test_an_option_without_a_value(capsys):
    with pytest.raises(SystemExit):
        main(["convert", "a", "b", "--option", "heads"])
    assert "must be NAME=VALUE, got 'heads'" in capsys.readouterr().err


@pytest.mark.parametrize("text, message", [
    ("[1]", "config must hold a table of options, got list in "), ("{", "config must be JSON, got "),
])  # fmt: skip
def test_bad_configs(tmp_path, capsys, text, message):
    (tmp_path / "a.json").write_text(text)
    assert main(["convert", "in.pt", str(tmp_path / "out.pt"), "--config", str(tmp_path / "a.json")]) == 2
    assert f"fastdiff: {message}" in capsys.readouterr().err
