"""UNetConfig: what is refused, and by which name."""

import dataclasses
import json

import numpy as np
import pytest

from fastdiff import UNetConfig

SMALL = dict(image_size=8, channels=8, channel_mult=(1, 2), attention_resolutions=(4,), groups=4)


def test_the_defaults_are_ddpms():
    config = UNetConfig()
    assert config.widths == (128, 256, 256, 256) and config.resolutions == (32, 16, 8, 4)
    assert (config.num_res_blocks, config.groups, config.norm_eps) == (2, 32, 1e-6)
    assert config.attention_resolutions == (16,) and config.out_channels == 3


def test_json_gives_the_config_back():
    config = UNetConfig(**SMALL, in_channels=1, heads=2, dropout=0.25, scale_shift=True)
    assert UNetConfig(**json.loads(json.dumps(config.to_dict()))) == config
    assert set(config.to_dict()) == {field.name for field in dataclasses.fields(UNetConfig)}


def test_numbers_of_numpy_become_ints():
    config = UNetConfig(**{**SMALL, "channels": np.int64(8), "channel_mult": np.array([1, 2])})
    assert config == UNetConfig(**SMALL)
    assert type(config.channels) is int and all(type(mult) is int for mult in config.channel_mult)


def test_heads():
    assert UNetConfig().heads_of(256) == 1
    assert UNetConfig(heads=4).heads_of(256) == 4
    assert UNetConfig(head_channels=64).heads_of(256) == 4


def test_heads_that_do_not_fill_the_width():
    config = UNetConfig(**SMALL, heads=(2, 3), head_channels=(4, 8))
    assert [config.heads_of(16, level) for level in (0, 1)] == [2, 3]
    assert [config.inner_width_of(16, level) for level in (0, 1)] == [8, 24]
    assert UNetConfig(heads=2, heads_up=4).heads_of(256, up=True) == 4
    assert UNetConfig(**SMALL, heads=2).inner_width_of(16) == 16


def test_a_narrower_first_level_and_another_stem():
    config = UNetConfig(**{**SMALL, "channel_mult": (0.5, 1.0)}, stem_channels=12)
    assert config.widths == (4, 8) and config.channel_mult == (0.5, 1) and config.stem == 12


def test_inputs_that_are_concatenated():
    assert UNetConfig(**SMALL, low_res=True).total_in_channels == 6
    assert UNetConfig(**SMALL, in_channels=1, self_condition=True).total_in_channels == 2


def test_a_width_of_its_own():
    assert UNetConfig(**SMALL, image_width=12).image_width == 12
    assert UNetConfig(**SMALL, image_width=8) == UNetConfig(**SMALL)


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        UNetConfig().channels = 1


@pytest.mark.parametrize("options, kind, message", [
    ({"image_size": 31}, ValueError, "image_size must be divisible by 2 for 2 levels, got 31"),
    ({"image_width": 31}, ValueError, "image_width must be divisible by 2 for 2 levels, got 31"),
    ({"pool": "attention", "head_channels": 4, "image_width": 16}, ValueError, "image_width must be image_size for an"),
    ({"image_size": 0}, ValueError, "image_size must be a positive int, got 0"),
    ({"image_size": 8.0}, TypeError, r"image_size must be a positive int, got 8\.0"),
    ({"in_channels": True}, ValueError, "in_channels must be a positive int, got True"),
    ({"out_channels": 0}, ValueError, "out_channels must be a positive int, got 0"),
    ({"channels": 6}, ValueError, "groups must divide the channels of every level, 6 here, got 4"),
    ({"channels": 2, "groups": 1}, ValueError, "channels must be even and at least 4, got 2"),
    ({"channels": 9, "groups": 9}, ValueError, "channels must be even and at least 4, got 9"),
    ({"channel_mult": ()}, ValueError, r"channel_mult must have at least one entry, got \(\)"),
    ({"channel_mult": (1, 0)}, ValueError, "channel_mult must be a positive int, got 0"),
    ({"channel_mult": 2}, TypeError, "channel_mult must be a sequence of positive ints, got 2"),
    ({"channel_mult": "12"}, TypeError, "channel_mult must be a sequence of positive ints, got '12'"),
    ({"num_res_blocks": 0}, ValueError, "num_res_blocks must be a positive int, got 0"),
    ({"attention_resolutions": (2,)}, ValueError, "attention_resolutions must be among 8, 4, got 2"),
    ({"heads": 3}, ValueError, "heads must divide 16 channels, got 3"),
    ({"head_channels": 32}, ValueError, "head_channels must divide 16 channels, got 32"),
    ({"dropout": 1}, ValueError, r"dropout must be in \[0, 1\), got 1"),
    ({"dropout": float("nan")}, ValueError, r"dropout must be in \[0, 1\), got nan"),
    ({"dropout": "0.1"}, ValueError, r"dropout must be in \[0, 1\), got '0.1'"),
    ({"norm_eps": 0.0}, ValueError, r"norm_eps must be in \(0, 1\), got 0\.0"),
    ({"scale_shift": 1}, TypeError, "scale_shift must be a bool, got 1"),
    ({"qkv_bias": None}, TypeError, "qkv_bias must be a bool, got None"),
    ({"num_classes": 0}, ValueError, "num_classes must be a positive int, got 0"),
    ({"channel_mult": (1, 0.3)}, ValueError, "channel_mult must give whole channels, got 0.3 of 8"),
    ({"channel_mult": (1, -0.5)}, ValueError, "channel_mult must be positive, got -0.5"),
    ({"stem_channels": 6}, ValueError, "groups must divide the channels of every level, 6 here, got 4"),
    ({"stem_kernel": 4}, ValueError, "stem_kernel must be odd, got 4"),
    ({"norm": "batch"}, ValueError, "norm must be one of group, rms, got 'batch'"),
    ({"qkv_order": "kqv"}, ValueError, "qkv_order must be one of qkv, heads, got 'kqv'"),
    ({"pool": "max"}, ValueError, "pool must be one of None, adaptive, attention, spatial, spatial_v2, got 'max'"),
    ({"theta": 1}, ValueError, "theta must be finite and above 1, got 1"),
    ({"freq_shift": 4}, ValueError, r"freq_shift must be in \[0, channels / 2\), got 4"),
    ({"fourier_features": 3}, ValueError, "fourier_features must be even, got 3"),
    ({"memory": -1}, ValueError, "memory must be an int of at least 0, got -1"),
    ({"heads": (1, 2, 3)}, ValueError, "heads must be one per level, 2 here, got 3"),
    ({"heads_up": 3}, ValueError, "heads must divide 16 channels, got 3"),
    ({"attention_resolutions_up": (2,)}, ValueError, "attention_resolutions_up must be among 8, 4, got 2"),
    ({"linear_attention_resolutions": (2,)}, ValueError, "linear_attention_resolutions must be among 8, 4, got 2"),
    ({"norm_first": False}, ValueError, "scale_shift must be True where norm_first is False, got False"),
    ({"widen": "resample"}, ValueError, "downsample must be unshuffle or conv_4x4 just where widen is resample"),
    ({"downsample": "unshuffle"}, ValueError, "just where widen is resample, got 'unshuffle'"),
    ({"downsample": "conv_4x4"}, ValueError, "just where widen is resample, got 'conv_4x4'"),
    ({"linear_mean": 1}, TypeError, "linear_mean must be a bool, got 1"),
    ({"widen": "resample", "downsample": "unshuffle"}, ValueError, "norm_first False where widen is resample"),
    ({"norm_first": False, "scale_shift": True, "downsample": "block"}, ValueError, "norm_first must be True where"),
    ({"standardized": True}, ValueError, "standardized must be False where norm_first is True, got True"),
    ({"pool": "attention"}, ValueError, "head_channels must be an int for an attention pool, got None"),
    ({"low_res": True, "self_condition": True}, ValueError, "self_condition must be False where low_res is True"),
])  # fmt: skip
def test_refusals(options, kind, message):
    with pytest.raises(kind, match=message):
        UNetConfig(**{**SMALL, **options})
