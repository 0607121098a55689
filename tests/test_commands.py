"""One way to turn a dataclass into a command: files, defaults, numbers, names, help without torch, completion."""

import subprocess
import sys
from pathlib import Path

import pytest
from cyclopts.argument import ArgumentCollection
from cyclopts.token import Token

from mova_engine import cli
from mova_engine.commands.completion import completion_app, declared
from mova_engine.config.command import Command, Nothing
from mova_engine.config.recipes import TRAIN
from mova_engine.config.sample import SAMPLE
from mova_engine.errors import MovaError
from mova_engine.plan.__main__ import PLAN

# Every option that several commands have means the same, and is spelled and typed alike, in all of them.
SHARED = ("--device", "--threads", "--clip.frames", "--parallel.shard", "--memory.checkpointing", "--out", "--dtype")


def commands() -> dict[str, Command]:
    """Every command by its name, measurements of bench included."""
    found: dict[str, Command] = {}
    for name, (module, _) in cli.COMMANDS.items():
        values = declared(module)
        found |= {f"{name} {word}": command for word, command in values.get("MEASUREMENTS", {}).items()}
        for value in values.values():
            if isinstance(value, Command):
                found[name] = value
    return found


COMMANDS = commands()


def test_a_file_comes_before_the_recipe_and_options_before_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("optim: {lr: 3.0e-4, warmup: 7}\nsteps: 11\n")
    config = TRAIN.parse(["--config", str(file), "--steps", "12", "--recipe", "lora"])
    assert (config.optim.lr, config.optim.warmup, config.steps) == (3e-4, 7, 12)
    assert config.lora.rank == 16 and config.name == "mine"


def test_a_file_serves_commands_without_recipes(tmp_path):
    file = tmp_path / "plan.yaml"
    file.write_text("model: mova-720p\nclip: {frames: 97}\nmemory: {inputs: host}\n")
    config = PLAN.parse(["--config", str(file), "--devices", "8"])
    assert (config.model, config.clip.frames, config.memory, config.devices) == (
        "mova-720p",
        97,
        {"inputs": "host"},
        8,
    )


@pytest.mark.parametrize("name", ["train", "eval compare"])
def test_arguments_assembled_once_are_those_that_cyclopts_assembles_each_time(name, monkeypatch):
    def described(arguments):
        return [(a.names, a.keys, a.hint, a.parse, a.tokens, [c.name for c in a.children]) for a in arguments]

    app, terms = COMMANDS[name].app(), ["--nowhere", "--no-such.option", "--device.x", 0, 1]
    again = app.assemble_argument_collection()
    again[-1].append(Token(value="1"))
    found = app.assemble_argument_collection()
    monkeypatch.setattr(app, "declared", None)
    usual = app.assemble_argument_collection()
    assert type(usual) is ArgumentCollection and described(found) == described(usual)
    for term in [*(word for a in usual for name in a.names for word in (name, name.replace("-", "_"))), *terms]:
        matches = []
        for collection in (found, usual):
            try:
                argument, keys, implicit = collection.match(term)
                matches.append((argument.name, keys, implicit))
            except ValueError as error:
                matches.append(str(error))
        assert matches[0] == matches[1]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("train", []),
        ("sample", ["--prompt", "x", "--checkpoint", "a"]),
        ("lora merge", ["--checkpoint", "a", "--lora", "b"]),
    ],
)
def test_a_program_that_imports_pydantic_can_use_commands(name, words):
    """cyclopts would have it check what is parsed, and it refuses what is left out."""
    pytest.importorskip("pydantic", reason="pydantic is not installed")
    assert COMMANDS[name].parse([*words, "--out", "c"]).out == Path("c")


def test_a_parsed_line_leaves_nothing_to_the_next():
    words = ["--recipe", "lora", "--optim.lr", "1e-3", "--data", "a", "--lora.rank", "3"]
    before = TRAIN.parse(["--recipe", "lora"])
    with pytest.raises(MovaError):
        TRAIN.parse([*words, "--optim.lr2", "1"])
    assert TRAIN.parse(words).lora.rank == 3
    assert TRAIN.parse(["--recipe", "lora"]) == before


@pytest.mark.parametrize("name", ["train", "sample", "plan", "encode", "bench step"])
def test_what_is_printed_is_read_again(name, tmp_path, capsys):
    given = {"sample": ["--checkpoint", "m", "--prompt", "x"], "encode": ["--data", "d", "--model", "nano"]}
    words = [*given.get(name, []), "--dtype", "bfloat16"]
    assert COMMANDS[name].parse([*words, "--print-config"]) is None
    file = tmp_path / "again.yaml"
    file.write_text(capsys.readouterr().out)
    again = COMMANDS[name].parse(["--config", str(file)])
    wanted = COMMANDS[name].parse(words)
    # A run is named after its file, unless it says another name.
    assert again == wanted


@pytest.mark.parametrize(
    "command, words, says",
    [
        (TRAIN, ["--lr", "1"], "unknown option --lr. Did you mean --optim.lr?"),
        (TRAIN, ["--batch", "1"], "unknown option --batch. Did you mean --loader.batch?"),
        (TRAIN, ["--frames", "1"], "unknown option --frames. Did you mean --clip.frames or --buckets.frames?"),
        (TRAIN, ["--every", "1"], "--checkpoint.every or --validation.every or --log.every"),
        (SAMPLE, ["--guidence", "x"], "unknown option --guidence. Did you mean --guidance?"),
        (TRAIN, ["--steps", "1.5"], "--steps: a whole number is wanted, got '1.5'"),
        (TRAIN, ["--steps", "1e3"], "--steps: a whole number is wanted, got '1e3'"),
        (TRAIN, ["--clip.frames", "9.0"], "--clip.frames: a whole number is wanted, got '9.0'"),
        (TRAIN, ["--steps", "1", "--steps", "2"], "--steps is given more than once"),
        (TRAIN, ["--config", "nowhere.yaml"], "no configuration file nowhere.yaml"),
        (SAMPLE, [], "missing: --checkpoint"),
        (COMMANDS["parity"], [], "missing: FOLDER"),
        (COMMANDS["curate"], [], "missing: RAW"),
        (COMMANDS["curate"], ["films"], "missing: --out"),
        (COMMANDS["curate"], ["films", "--out"], "--out requires an argument"),
    ],
)
def test_what_is_wrong_is_one_line(command, words, says):
    with pytest.raises(MovaError) as caught:
        command.parse(words)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text, says",
    [
        ("optim: {lrr: 1}\n", "unknown option --optim.lrr"),
        ("lrr: 1\n", "unknown option --lrr"),
        ("steps: 1.5\n", "a whole number is wanted, got '1.5'"),
        ("dtype: float31\n", "unknown value 'float31'. Did you mean 'float32'?"),
        ("- 1\n", "must hold a mapping of settings, got list"),
        ("a: [\n", "is not valid YAML"),
    ],
)
def test_what_is_wrong_in_a_file_names_the_file(text, says, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(MovaError) as caught:
        TRAIN.parse(["--config", str(file)])
    assert says in str(caught.value) and "mine.yaml" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_for_each_option(name, capsys):
    command, entries = COMMANDS[name], []
    app = command.app()
    app.help_formatter = lambda console, options, panel: entries.extend(panel.entries)
    app(["--help"])
    assert len(entries) > 3 and not [entry.names for entry in entries if not entry.description]
    capsys.readouterr()
    assert command.parse(["--help"]) is None
    shown = capsys.readouterr().out
    assert shown.startswith(f"Usage: mova {name}") and "--print-config" in shown
    assert command.beside is not Nothing or "How it is run" not in shown


def test_print_config_without_what_must_be_given_prints_a_form_to_fill_in(tmp_path, capsys):
    assert COMMANDS["sample"].parse(["--print-config"]) is None
    printed = capsys.readouterr().out
    assert "checkpoint: null\n" in printed and "seed: 0\n" in printed and "  idle: host\n" in printed
    form = tmp_path / "form.yaml"
    form.write_text(printed)
    with pytest.raises(MovaError):
        COMMANDS["sample"].parse(["--config", str(form)])
    form.write_text(printed.replace("checkpoint: null", "checkpoint: m").replace("\nprompt: null", "\nprompt: x"))
    wanted = COMMANDS["sample"].parse(["--checkpoint", "m", "--prompt", "x"])
    assert COMMANDS["sample"].parse(["--config", str(form)]) == wanted


def test_help_shows_the_recipes_own_values(capsys):
    TRAIN.parse(["--recipe", "joint-phase3", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "a multiple of 16. [default: 720]" in shown and "[default: 77000]" in shown
    assert "betas: AdamW" not in shown and "over 1 process" not in shown


def test_help_leaves_out_what_a_command_refuses(capsys):
    for name, refused in (
        ("sample", "--memory.checkpointing"),
        ("train", "--parallel.cfg"),
        ("train", "--memory.expert"),
    ):
        assert refused in COMMANDS[name].options()
        COMMANDS[name].parse(["--help"])
        assert refused not in capsys.readouterr().out


def test_shared_options_are_spelled_alike():
    kinds: dict[str, set[object]] = {}
    for command in COMMANDS.values():
        for argument in command.app().assemble_argument_collection():
            for name in argument.names:
                if name in SHARED:
                    kinds.setdefault(name, set()).add(argument.resolved_hint)
    assert kinds.keys() == set(SHARED)
    for name, found in kinds.items():
        # dtypes are the names of torch; some commands take one more of them.
        assert len({str(kind).replace(", 'float16'", "") for kind in found}) == 1, (name, found)


def test_no_help_imports_torch():
    """In one process, one command after the other: the second would find torch if the first had imported it."""
    code = (
        "import sys, io, contextlib\nfrom mova_engine import cli\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    for name in cli.COMMANDS:\n        assert cli.main([*name.split(), '--help']) == 0\n"
        "print(sorted({'torch', 'numpy', 'av'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command(shell):
    script = completion_app(cli.COMMANDS).generate_completion(prog_name="mova", shell=shell)
    assert all(word in script for name in cli.COMMANDS for word in name.split())
    assert "optim.lr" in script and "operators" in script


def test_bash_reads_the_completion(tmp_path):
    file = tmp_path / "mova.bash"
    file.write_text(completion_app(cli.COMMANDS).generate_completion(prog_name="mova", shell="bash"))
    ask = (
        f'source {file}; COMP_WORDS=(mova pl); COMP_CWORD=1; COMP_LINE="mova pl"; COMP_POINT=7; '
        '$(complete -p mova | sed "s/.*-F \\([^ ]*\\).*/\\1/"); echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True)
    assert done.stdout.split() == ["plan"], done.stderr
