"""`fastdiff`: what goes wrong becomes one line and a status."""

import subprocess
import sys

import pytest

import fastdiff
from fastdiff import cli
from fastdiff.cli import doctor


def failing(error):
    def main(arguments):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("steps must be positive,\n  got 0"), "fastdiff: steps must be positive, got 0"),
        (FileNotFoundError(2, "No such file or directory", "runs/x"), "[Errno 2] No such file or directory: 'runs/x'"),
        (ValueError(), "fastdiff: ValueError"),
    ],
)
def test_a_users_error_is_one_line(monkeypatch, capsys, error, line):
    monkeypatch.setattr(doctor, "main", failing(error))
    assert cli.main(["doctor"]) == 2
    message = capsys.readouterr().err
    assert line in message and message.count("\n") == 1


def test_our_error_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(doctor, "main", failing(AssertionError()))
    with pytest.raises(AssertionError):
        cli.main(["doctor"])


def test_interrupt(monkeypatch):
    monkeypatch.setattr(doctor, "main", failing(KeyboardInterrupt()))
    assert cli.main(["doctor"]) == 130


@pytest.mark.parametrize("argv", [[], ["paint"], ["doctor", "--what"]])
def test_wrong_usage_exits_with_2(argv, capsys):
    with pytest.raises(SystemExit) as status:
        cli.main(argv)
    assert status.value.code == 2
    assert "usage: fastdiff" in capsys.readouterr().err


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as status:
        cli.main(["--help"])
    assert status.value.code == 0
    text = capsys.readouterr().out
    for name, summary in cli.COMMANDS.items():
        assert name in text and summary in text


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as status:
        cli.main([name, "--help"])
    assert status.value.code == 0
    assert f"usage: fastdiff {name}" in capsys.readouterr().out


def test_module_is_the_command():
    output = subprocess.run([sys.executable, "-m", "fastdiff", "--version"], capture_output=True, text=True, check=True)
    assert output.stdout == f"fastdiff {fastdiff.__version__}\n"
