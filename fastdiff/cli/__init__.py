"""The command line: one module per command, imported when it is used.

A command's module has `add_arguments(parser)` and `main(arguments)`, which returns the exit status or None; its
docstring is its help. What a user can get wrong (ValueError, OSError and the like) becomes one line and status 2.
"""

import argparse
import importlib
import sys

import fastdiff

COMMANDS = {
    "train": "train a diffusion model on a data set",
    "sample": "draw images from a trained model",
    "data": "prepare images to train on",
    "evaluate": "measure a trained model: bits per dimension, figures",
    "convert": "write a U-Net's weights as another library names them",
    "bench": "time fastdiff against its peers; what GPU kernels take",
    "tune": "find block sizes for the Triton kernels on this GPU",
    "doctor": "show versions, devices and which backends run here, or why not",
}
_USER_ERRORS = (ValueError, OSError, ImportError, NotImplementedError)


def main(argv=None):
    """Run `fastdiff argv...` (by default the process's arguments) and return the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        arguments = _parser(argv).parse_args(argv)
        return arguments.main(arguments) or 0
    except KeyboardInterrupt:
        return 130
    except _USER_ERRORS as error:
        print(f"fastdiff: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        return 2


def _parser(argv):
    parser = argparse.ArgumentParser("fastdiff", description=fastdiff.__doc__)
    parser.add_argument("--version", action="version", version=f"fastdiff {fastdiff.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)
    asked = next((word for word in argv if not word.startswith("-")), None)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == asked:
            module = importlib.import_module(f"{__name__}.{name}")
            command.description = module.__doc__
            command.set_defaults(main=module.main)
            module.add_arguments(command)
    return parser
