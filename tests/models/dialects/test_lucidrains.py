"""Against the installed denoising-diffusion-pytorch: networks of random weights, live."""

import pytest
import torch

from fastdiff import GaussianProcess, Sampler, load_unet
from fastdiff.models.layers import StandardizedConv2d
from tests.models.recorded import error

peer = pytest.importorskip(
    "denoising_diffusion_pytorch", reason="compares with denoising-diffusion-pytorch, which is not installed"
)

SMALL = dict(dim=16, dim_mults=(1, 2))
CONFIGS = {
    "defaults": SMALL,
    "three levels, width no power of two": dict(dim=24, dim_mults=(1, 2, 3)),
    "another stem, learned variance": dict(SMALL, init_dim=8, learned_variance=True),
    "full attention everywhere, other heads": dict(SMALL, full_attn=(True, True), attn_heads=(2, 3), attn_dim_head=8),
    "linear attention in the last level": dict(SMALL, full_attn=(True, False)),
    "self-conditioned": dict(SMALL, self_condition=True),
    "random Fourier features": dict(SMALL, random_fourier_features=True, learned_sinusoidal_dim=8),
    "learned Fourier features, grey": dict(SMALL, learned_sinusoidal_cond=True, channels=1),
    "another theta": dict(SMALL, sinusoidal_pos_emb_theta=100),
}


def theirs(options):
    torch.manual_seed(0)
    model = peer.Unet(**options).eval()
    for name, parameter in model.named_parameters():
        if name.endswith((".g", "bias")):
            torch.nn.init.normal_(parameter, mean=float(name.endswith(".g")), std=0.2)
    return model


def told(options):
    return {"image_size": 16, **{key: value for key, value in options.items() if key == "sinusoidal_pos_emb_theta"}}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-5), (torch.float64, 1e-6)])
def test_outputs(name, dtype, tolerance):
    model = theirs(CONFIGS[name])
    ours = load_unet(model.state_dict(), config=told(CONFIGS[name])).to(dtype)
    model.to(dtype)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, model.channels, 16, 16, generator=generator).to(dtype)
    t = torch.tensor([3, 999]).to(torch.int64 if dtype is torch.float32 else dtype)
    given = torch.randn(x.shape, generator=generator).to(dtype) if model.self_condition else None
    with torch.no_grad():
        assert error(ours(x, t, x_self_cond=given), model(x, t, given)) < tolerance
        assert error(ours(x, t), model(x, t)) < tolerance


def test_gradients():
    model = theirs(SMALL)
    ours = load_unet(model.state_dict(), config=told(SMALL))
    x, t = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 999])
    for each in (model, ours):
        each(x, t).square().mean().backward()
    assert error(ours.down[0]["attentions"][1].memory.grad, model.downs[0][2].mem_kv.grad) < 2e-5
    assert error(ours.block_out.conv_1.weight.grad, model.final_res_block.block1.proj.weight.grad) < 2e-5


def test_standardized_convolution():
    layer, x = StandardizedConv2d(3, 4, 3, padding=1), torch.randn(2, 3, 5, 5)
    flat = layer.weight.detach().flatten(1)
    weight = (flat - flat.mean(1, keepdim=True)) / (flat.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    expected = torch.nn.functional.conv2d(x, weight.unflatten(1, (3, 3, 3)), layer.bias, padding=1)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("ema", [False, True])
def test_a_trainers_file(ema, tmp_path):
    """model-1.pt: {step, model, opt, ema, scaler, version}, the network below model. and ema_model.model."""
    diffusion, averaged = (peer.GaussianDiffusion(theirs(SMALL), image_size=16) for _ in range(2))
    for parameter in averaged.parameters():
        parameter.data += 1
    average = {f"ema_model.{key}": value for key, value in averaged.state_dict().items()}
    average |= {f"online_model.{key}": value for key, value in diffusion.state_dict().items()}
    average |= dict(initted=torch.tensor(True), step=torch.tensor(3))
    torch.save(
        dict(step=1, model=diffusion.state_dict(), opt={}, ema=average, scaler=None, version="2.3.4"), tmp_path / "1.pt"
    )
    loaded = load_unet(tmp_path / "1.pt", config=dict(image_size=16), ema=ema)
    expected = averaged if ema else diffusion
    assert torch.equal(loaded.conv_in.weight, expected.model.init_conv.weight)


def test_self_conditioned_samples(monkeypatch):
    """As the package's own, by its network and by ours: each step is told the x_0 estimated in the last."""
    torch.manual_seed(0)
    network = peer.Unet(8, dim_mults=(1, 2), self_condition=True, full_attn=(False, True)).eval()
    for parameter in network.parameters():
        parameter.data.mul_(1.5)
    options = dict(image_size=8, timesteps=50, sampling_timesteps=5, beta_schedule="linear")
    diffusion = peer.GaussianDiffusion(network, **options)
    x = torch.randn(2, 3, 8, 8)
    monkeypatch.setattr(torch, "randn", lambda *args, **options: x)
    expected = 2 * diffusion.ddim_sample(x.shape) - 1
    monkeypatch.undo()
    process = GaussianProcess(diffusion.betas.double(), prediction="v")
    ours = load_unet(network.state_dict(), config=dict(image_size=8))
    for model in (network, ours):
        sampler = Sampler(model, process, "ddim", [9, 19, 29, 39, 49], precision="fp32")
        torch.testing.assert_close(sampler.sample(x=x), expected, rtol=0, atol=2e-5)
