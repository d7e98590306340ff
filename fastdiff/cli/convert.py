"""Write a U-Net's weights by the names of another library.

IN is what `fastdiff.load_unet` reads: a file of safetensors or torch.save (of OpenAI's code, pesser's DDPM,
lucidrains' Trainer, or ours), or a folder of diffusers. OUT is one file (.safetensors or torch.save's), or a folder for
--dialect diffusers. What IN's weights do not tell is given as options by its own library's names:

  fastdiff convert ema_0.9999_250000.pt unet.safetensors --option image_size=64 --option num_heads=4
"""

import argparse
import json

_DIALECTS = ("fastdiff", "openai", "guided", "diffusers", "ddpm", "lucidrains")


def add_arguments(parser):
    parser.add_argument("input", metavar="IN", help="checkpoint, or folder of diffusers")
    parser.add_argument("output", metavar="OUT", help="file, or folder for diffusers")
    parser.add_argument("--dialect", choices=_DIALECTS, default="fastdiff", help="of OUT (default fastdiff)")
    parser.add_argument("--from", dest="source", choices=("auto", *_DIALECTS), default="auto", help="dialect of IN")
    parser.add_argument("--ema", action="store_true", help="the averaged weights of IN")
    parser.add_argument("--config", metavar="FILE", help="options of IN as a JSON file, such as a config.json")
    parser.add_argument(
        "--option", action="append", default=[], type=_option, metavar="NAME=VALUE", help="one of them, VALUE in JSON"
    )


def _option(text):
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def _read(path):
    try:
        with open(path) as file:
            options = json.load(file)
    except ValueError as error:
        raise ValueError(f"config must be JSON, got {path!r}: {error}") from None
    if not isinstance(options, dict):
        raise ValueError(f"config must hold a table of options, got {type(options).__name__} in {path!r}")
    return options


def main(args):
    from ..models import load_unet, save_unet

    options = dict(args.option)
    if args.config:
        options = {**_read(args.config), **options}
    model = load_unet(args.input, args.source, options or None, ema=args.ema)
    save_unet(model, args.output, args.dialect)
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count:,} parameters: {args.output} ({args.dialect})")
    return 0
