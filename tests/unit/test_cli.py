"""The command line itself: help, version, arguments that make no sense, errors of commands."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from jetstream import __version__
from jetstream.cli.main import COMMANDS, main
from jetstream.errors import RendezvousError


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["-n", "2", "no-such-program"], 127, "no program no-such-program"),
        (["-n", "2", "no-such-file.py"], 127, "no file no-such-file.py"),
        (["-n", "2", "/etc/passwd"], 126, "/etc/passwd is not executable"),
        (["-n", "0", "x"], 2, "1 to 256"),
        (["-n", "257", "x"], 2, "1 to 256"),
        (["-n", "two", "x"], 2, "1 to 256"),
        (["-n", "2"], 2, "what to run is missing"),
        (["-n", "2", "--"], 2, "what to run is missing"),
        (["x.py"], 2, "-n/--ranks"),
        (["-n", "2", "--timeout", "soon", "x"], 2, "not a number of seconds"),
    ],
)
def test_what_cannot_run(
    capfd: pytest.CaptureFixture[str], arguments: list[str], status: int, text: str
) -> None:
    try:
        code: object = main(["run", *arguments])
    except SystemExit as error:
        code = error.code
    out, err = capfd.readouterr()
    assert (code, out) == (status, "")
    assert text in err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text
    for command in COMMANDS:
        assert f"\n    {command} " in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: jetstream {command}")


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"jetstream {__version__} (build ")


@pytest.mark.parametrize("arguments", [[], ["dance"], ["--vers"]])
def test_unknown_commands(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: jetstream" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "status", "text"),
    [
        (RendezvousError("nobody there"), 1, "jetstream: nobody there\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_of_commands(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: BaseException,
    status: int,
    text: str,
) -> None:
    def fail(arguments: Any) -> int:
        raise raised

    monkeypatch.setattr("jetstream.cli.run._run", lambda parser, arguments: fail(arguments))
    assert main(["run", "-n", "1", "x"]) == status
    assert capsys.readouterr().err == text


def test_one_command_does_not_load_the_others() -> None:
    code = (
        "import sys; from jetstream.cli.main import main\n"
        "try: main(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'jetstream.cli.run' in sys.modules\n"
        "for name in ('jetstream.cli.bench', 'jetstream.cli.info', 'numpy', 'zmq'):\n"
        "    assert name not in sys.modules, name\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)
