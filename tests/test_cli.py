"""The console script `mova`."""

import importlib.metadata
import logging
import subprocess
import sys

import pytest
import torch

from mova_engine import __version__, cli, errors
from mova_engine.errors import MovaError
from source_tree import ROOT


def test_every_command_is_a_module_with_a_main():
    for name, (module, _) in cli.COMMANDS.items():
        path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
        assert path.exists() and "\ndef main(" in path.read_text(), f"mova {name}: {module} has no main"


def test_every_program_of_the_engine_is_a_command():
    modules = {module for module, _ in cli.COMMANDS.values()}
    programs = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "mova_engine").rglob("*.py")
        if "\ndef main(" in path.read_text() and path.name != "cli.py"
    }
    assert programs == modules


def test_help_lists_the_commands(capsys):
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.COMMANDS)


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"mova_engine {__version__}"


def test_arguments_reach_the_command(capsys):
    assert cli.main(["ops", "--device", "cpu"]) == 0
    assert "attention" in capsys.readouterr().out


def test_unknown_command_suggests_the_nearest():
    with pytest.raises(MovaError, match=r"unknown command 'trian'\. Did you mean 'train'\?"):
        cli.main(["trian"])


def test_error_is_one_line_and_status_2(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["mova", "samples"])
    with pytest.raises(SystemExit) as stopped:
        cli.run()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "error: unknown command 'samples'. Did you mean 'sample'? Known: " + ", ".join(cli.COMMANDS) + "\n"
    )


def test_console_script_is_declared():
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="mova")
    assert script.value == "mova_engine.cli:run"


def test_a_reader_that_has_enough_is_no_error(repo_root):
    command = f"{sys.executable} -m mova_engine completion bash | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=repo_root, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1


# train has a parser of its own, which tests/train/test_recipes.py covers.
@pytest.mark.parametrize("name", sorted(cli.COMMANDS.keys() - {"train"}))
def test_a_wrong_option_is_one_line_that_names_it(name):
    with pytest.raises(MovaError) as caught:
        cli.main([*name.split(), "--devise", "cpu"])
    assert "\n" not in str(caught.value) and "usage" not in str(caught.value)


@pytest.mark.parametrize(
    "argv, option",
    [
        (["sample", "--checkpoint", "", "--prompt", "x"], "--checkpoint"),
        (["sample", "--checkpoint", "m", "--prompt", "x", "--out", ""], "--out"),
        (["lora", "merge", "--checkpoint", "m", "--lora", "l", "--out", " "], "--out"),
        (["nano", "clips", ""], "--out"),
        (["train", "--out", ""], "--out"),
        (["train", "--data", ""], "--data"),
    ],
)
def test_an_empty_path_is_not_the_current_folder(argv, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MovaError, match=f"{option} is empty"):
        cli.main(argv)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "argv, words",
    [
        (["bench", "traffic", "--count", "-4"], "--count must lie between 2 and"),
        (["bench", "traffic", "--count", "1"], "--count must lie between 2 and"),
        (["nano", "clips", "balls", "--clips", "1", "--seed", "-1"], "seed must be at least 0"),
        (["nano", "clips", "file", "--clips", "1"], "file is a file, not a folder"),
        (["train", "--seed", str(2**32)], "seed must lie between 0 and"),
        (["train", "--threads", "100000000"], "threads must lie between 1 and"),
        (["train", "--threads", "0"], "threads must lie between 1 and"),
    ],
)
def test_numbers_that_no_run_can_use_are_one_line(argv, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(MovaError, match=words) as caught:
        cli.main(argv)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_memory_that_is_not_enough_is_one_line(capsys):
    def main():
        torch.empty(2**60)

    with pytest.raises(SystemExit) as caught:
        errors.run_cli(main)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: not enough memory: ") and "can't allocate memory" in line


def test_an_error_of_ours_keeps_its_traceback():
    def main():
        raise RuntimeError("a shape is wrong")

    with pytest.raises(RuntimeError, match="a shape is wrong"):
        errors.run_cli(main)


def test_warnings_are_single_lines_however_long(capsys):
    words = "x" * 300
    errors.show_warnings(lambda line: print(line))
    try:
        logging.getLogger("mova_engine.somewhere").warning("clip '%s'\n cannot be used", words)
        assert capsys.readouterr().out == f"warning: clip '{words}' cannot be used\n"
    finally:
        root = logging.getLogger()
        root.handlers = [handler for handler in root.handlers if not isinstance(handler, errors.WarningLines)]
