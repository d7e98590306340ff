"""What a run is told: its data's preset, a file, the command line; the later wins."""

import importlib
import json
from dataclasses import fields
from pathlib import Path

from . import processes

# What suits each data set; a file and the command line can change all of it. The digits take one to four minutes on
# two CPU cores.
PRESETS = {
    "digits": dict(
        steps=2000, batch_size=32, lr=2e-3, decay_to=0.05, ema_decay=0.995, checkpoint_every=500, sample_every=1000,
        schedule="cosine",
        threads=1,  # two are no quicker on such small tensors, and four times slower where they wait for one another
        model=dict(channels=16, channel_mult=(1, 2), attention_resolutions=(4,), groups=8, dropout=0.0),
    ),
    "fashion-mnist": dict(
        steps=10_000, batch_size=64, lr=1e-3, decay_to=0.05,
        model=dict(channels=32, channel_mult=(1, 2, 2), attention_resolutions=(14,), groups=8, dropout=0.1),
    ),
}  # fmt: skip
DEFAULT = dict(model=dict(channels=64, channel_mult=(1, 2, 2), attention_resolutions=(), dropout=0.1))
# Of the command: its defaults.
COMMAND = dict(
    data=None, out=None, data_dir=None, image_size=None, on_error="raise", class_conditional=False, device=None,
    threads=None, num_samples=25, process=processes.DEFAULT,
)  # fmt: skip
# What the data decide of the network.
_OF_DATA = ("in_channels", "out_channels", "image_size", "image_width", "num_classes")
_FACTS = ("images", "labels", "classes")  # what a config.json says besides options
# What a file's values must be; TrainConfig and UNetConfig check theirs.
_KINDS = {
    **dict.fromkeys(("data", "out", "data_dir", "on_error", "device", "process", "schedule"), (str, "a text")),
    **dict.fromkeys(("image_size", "threads", "num_samples", "num_timesteps"), (int, "an int")),
    **dict.fromkeys(("beta_min", "beta_max", "sigma_min", "sigma_max"), ((int, float), "a number")),
    "class_conditional": (bool, "true or false"),
}


def gathered(args):
    """Every option by name, of the preset, the file and the command line; `process` is the table of its options."""
    given = {name: value for name, value in vars(args).items() if value is not None}
    told = {**(read(args.config) if args.config else {}), **given}
    preset = {**DEFAULT, **PRESETS.get(told.get("data"), {})}
    choices = {**COMMAND, **processes.OPTIONS[processes.DEFAULT], **preset, **preset["model"], **told}
    for name in ("data", "out"):
        if choices[name] is None:
            raise ValueError(f"{name} must be given, as --{name} or in --config")
    if choices["class_conditional"]:
        choices.setdefault("label_dropout", 0.1)
    elif choices.get("label_dropout") is not None:
        raise ValueError(f"label_dropout must not be given without class_conditional, got {choices['label_dropout']}")
    choices["process"] = processes.settled(told, choices)
    if _learned(choices["process"]):
        choices.setdefault("objective", "hybrid")
    return choices


def make_settings(choices, images, classes=None):
    """(TrainConfig, options of the process, UNetConfig) of images [N, C, H, W] of so many classes, None without."""
    from ..models import UNetConfig
    from ..training import TrainConfig

    def chosen(names):
        return {name: choices[name] for name in names if name in choices}

    process = choices["process"]
    C, H, W = images.shape[1:]
    out = 2 * C if _learned(process) else C
    # One more class than there are: that of hidden labels.
    of_data = dict(in_channels=C, out_channels=out, image_size=H, image_width=W)
    of_data["num_classes"] = None if classes is None else classes + 1
    network = chosen(field.name for field in fields(UNetConfig))
    try:
        config = TrainConfig(**chosen(field.name for field in fields(TrainConfig)))
        return config, process, UNetConfig(**{**network, **of_data})
    except TypeError as error:  # a file's value of another kind
        raise ValueError(str(error)) from error


def _learned(process):
    return str(process.get("variance")).startswith("learned")


def read(path):
    """{option: value} of a .toml, .json or .yaml file; tables in it (model, process, any) only group the options."""
    path = Path(path)
    known = _known()
    options = {}
    for name, value in _flattened(_parsed(path)):
        if name in _FACTS:
            continue
        if name not in known:
            raise ValueError(f"config must hold options of fastdiff train, got {name!r} in {str(path)!r}")
        _check_kind(name, value)
        options[name] = tuple(value) if isinstance(value, list) else value
    return {name: value for name, value in options.items() if value is not None}


def _check_kind(name, value):
    kind, rule = _KINDS.get(name, (None, None))
    if value is None or kind is None:
        return
    if not isinstance(value, kind) or isinstance(value, bool) is not (kind is bool):
        raise ValueError(f"{name} must be {rule}, got {value!r}")


def _known():
    from ..models import UNetConfig
    from ..training import TrainConfig

    network = {field.name for field in fields(UNetConfig)}
    return {*COMMAND, *processes.NAMES, *network, *(field.name for field in fields(TrainConfig))}


def _flattened(table):
    for name, value in table.items():
        name = str(name).replace("-", "_")
        if isinstance(value, dict) and name not in _FACTS:
            inner = _flattened(value)
            yield from ((key, each) for key, each in inner if name != "model" or key not in _OF_DATA)
        else:
            yield name, value


def _parsed(path):
    readers = {".toml": _toml, ".json": json.loads, ".yaml": _yaml, ".yml": _yaml}
    if path.suffix not in readers:
        raise ValueError(f"config must be a file in {', '.join(readers)}, got {str(path)!r}")
    text = path.read_text()
    try:
        table = readers[path.suffix](text)
    except ImportError:
        raise
    except Exception as error:  # each reader has its own
        raise ValueError(f"config must be {path.suffix[1:].upper()}, got {str(path)!r}: {error}") from None
    if not isinstance(table, dict):
        raise ValueError(f"config must hold a table of options, got {type(table).__name__} in {str(path)!r}")
    return table


def _toml(text):
    try:
        return importlib.import_module("tomllib").loads(text)
    except ModuleNotFoundError:
        pass
    try:
        return importlib.import_module("tomli").loads(text)
    except ModuleNotFoundError:
        raise ImportError("config in TOML needs Python 3.11 or tomli: pip install tomli") from None


def _yaml(text):
    try:
        yaml = importlib.import_module("yaml")
    except ModuleNotFoundError:
        raise ImportError("config in YAML needs PyYAML: pip install pyyaml") from None
    return yaml.safe_load(text)
