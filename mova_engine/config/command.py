"""Commands made of dataclasses: options, help, configuration files and errors are the same for all of them.

A command's settings are one dataclass. Each field is an option under its dotted name, its docstring the help; a field
that is a dataclass is a group of options, `--optim.lr`. Fields that are not keyword-only are positional arguments.
Values come from, in rising order: the defaults, a recipe (`--recipe NAME`, for commands that have them), the user's own
YAML file (`--config FILE`), the command line. Parsing is cyclopts'.
"""

# A command's parser is a function whose parameters have types that are made at run time; cyclopts' own are partial.
# pyright: reportInvalidTypeForm=false, reportUnknownParameterType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false, reportRedeclaration=false

import dataclasses
import itertools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, cast, get_args

import yaml
from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts import convert as converted
from cyclopts.config import Dict

from mova_engine.config.command_refusals import EMPTY, refusal
from mova_engine.config.from_tools.translation import Translation, Translator, errors_of, translate_one
from mova_engine.config.keyed_options import with_other_keys
from mova_engine.config.option_help import HelpOfValues
from mova_engine.config.reused_app import ReusedApp
from mova_engine.config.shorthand import Shorthand
from mova_engine.errors import MovaError, suggest

Settings = TypeVar("Settings")
Named = TypeVar("Named")

_WHOLE = re.compile(r"[+-]?\d+(_\d+)*")
# The group of a command's own options, and of those that every command has.
_OPTIONS, _GENERAL = Group("Options", sort_key=0), Group("Configuration", sort_key=1)
_BESIDE = Group("How it is run", sort_key=2)


@dataclass(frozen=True)
class Nothing:
    """No options beside a command's settings."""


@cache
def section(title: str) -> Parameter:
    """The heading of options in help, `Annotated[OptimSettings, section("Optimizer")]`; the same for the same title."""
    return Parameter(group=Group.create_ordered(title))  # pyright: ignore[reportUnknownMemberType] cyclopts


def configuring() -> Parameter:
    """The heading of options beside a command's settings that say where those come from."""
    return Parameter(group=_GENERAL)


def spelled(option: str) -> Parameter:
    """An option whose name is not its field's, such as a Python keyword: `Annotated[str, spelled("--with")]`."""
    return Parameter(name=option)


def split_names(text: str | None) -> list[str]:
    """The names of an option that takes a comma-separated list; [] for None."""
    return [name for name in (text or "").split(",") if name]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping of settings in a YAML file. MovaError where there is none."""
    if not path.is_file():
        raise MovaError(f"there is no configuration file {path}")
    return parse_yaml(path.read_text(encoding="utf-8"), str(path))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """The mapping of settings that YAML text holds. MovaError that names `source` for anything else."""
    try:
        settings: Any = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise MovaError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise MovaError(f"{source} must hold a mapping of settings, got {type(settings).__name__}")
    return cast(dict[str, Any], settings)


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings laid over one another; where both have a mapping, these are merged in turn."""
    merged = dict(under)
    for name, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = merge(merged[name], value) if both else value
    return merged


def to_plain(value: Any) -> Any:
    """Settings as values that YAML and JSON have: dataclasses and mappings as dicts, sequences as lists, paths as text.

    None stands for "not given".
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {name: to_plain(item) for name, item in cast(Mapping[str, Any], value).items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in cast(Sequence[Any], value)]
    return str(value) if isinstance(value, Path) else value


def to_yaml(settings: Any) -> str:
    """A dataclass of settings as a file that `--config` takes."""
    return yaml.safe_dump(to_plain(settings), sort_keys=False)


@dataclass(frozen=True)
class Recipes:
    """Where a command's recipes come from. read: name -> settings, MovaError for an unknown one. default: its name."""

    read: Callable[[str], dict[str, Any]]
    default: str


@dataclass(frozen=True)
class Command(Generic[Settings]):
    """A command: its name as it is typed, the dataclass of its settings, what it does (the help's first lines).

    hidden: options of shared groups that it refuses, which its help leaves out.
    beside: a dataclass of options that are no settings: they say how the command is run, and no file holds them.
    shorthands: words for groups of settings, two of them at most. A command's recipes have theirs expanded where they
    are read.
    translators: what reads other tools' files, by option; the option itself is one of `beside`. Their settings lie over
    the recipe `Translation.recipe` and under the user's own file.
    """

    name: str
    settings: type[Settings]
    about: str
    recipes: Recipes | None = None
    hidden: tuple[str, ...] = ()
    beside: type = Nothing
    shorthands: tuple[Shorthand, ...] = ()
    translators: Mapping[str, Translator] = dataclasses.field(default_factory=dict[str, Translator])

    def parse(self, argv: Sequence[str] | None = None) -> Settings | None:
        """Parse a command line (None: that of the process) to the command's settings.

        Returns None if it asked for help or --print-config, which is then printed. Raises MovaError of one line, with
        the nearest option or value, for a command line that is wrong.
        """
        return self.parse_both(argv)[0]

    def parse_both(self, argv: Sequence[str] | None = None) -> tuple[Settings | None, Any]:
        """As `parse`; returns the options beside the settings too."""
        argv = sys.argv[1:] if argv is None else argv
        under, source, translated = self._under(argv)
        for each in self.shorthands:
            argv = each.taken_off(argv)
        argv = with_other_keys(argv, self.settings, under)
        app, shown = self._app(under, source), []
        with errors_of(translated):
            found = self._run(app, argv, shown)
        lines = () if translated is None else translated.said
        if found is None:
            return None, self.beside()
        print_config, beside = shown[0]
        sys.stdout.writelines(f"{'# ' if print_config else ''}{line}\n" for line in lines)
        if not print_config:
            return found, beside
        sys.stdout.write(to_yaml(found))
        return None, beside

    def fill(self, settings: Mapping[str, Any], source: str) -> Settings:
        """The settings that nested mappings give. source: where they come from, for errors."""
        settings = self._expanded(settings, source)
        found = self._run(self._app(settings, source), [], [])
        assert found is not None
        return found

    def app(self, name: str = "", about: str = "") -> App:
        """The command as cyclopts has it, for completion. name, about: other ones than its own."""
        app = replace(self, name=name or self.name, about=about or self.about)._app({}, "")
        self._define(app, [])
        return app

    def options(self) -> set[str]:
        """All names of options: "--optim.lr"."""
        arguments = self.app().assemble_argument_collection()
        return {name for argument in arguments for name in argument.names if name.startswith("--")}

    def _under(self, argv: Sequence[str]) -> tuple[dict[str, Any], str, Translation | None]:
        """What lies under the command line, where it comes from, and another tool's file in it, translated."""
        settings: dict[str, Any] = {}
        source = ""
        files = {flag: path for flag in self.translators if (path := _value_of(flag, argv)) is not None}
        given = {(name := word.partition("=")[0]): _value_of(name, argv) for word in argv if word.startswith("--")}
        translated = translate_one(self.translators, files, given)
        if self.recipes is not None:
            default = self.recipes.default if translated is None else translated.recipe
            recipe = _value_of("--recipe", argv) or default
            settings = {"name": Path(recipe).stem, **self.recipes.read(recipe)}
            source = f"recipe {recipe}"
        if translated is not None:
            settings = merge(settings, self._expanded(translated.settings, translated.file))
            source = f"{source} and {translated.file}"
        if path := _value_of("--config", argv):
            own = read_yaml(Path(path)) if self.recipes is None else self.recipes.read(path)
            own = self._expanded(own, path)
            named = {"name": Path(path).stem} if self.recipes is not None else {}
            settings, source = merge(settings, named | own), f"{source} and {path}" if source else path
        for each in self.shorthands:
            if (word := _value_of(each.flag, argv)) is not None:
                settings = merge(settings, each.expand({each.group: word}, each.flag))
        return settings, source, translated

    def _expanded(self, settings: Mapping[str, Any], source: str) -> dict[str, Any]:
        expanded = dict(settings)
        for each in self.shorthands:
            expanded = each.expand(expanded, f"{each.group} in {source}")
        return expanded

    def _app(self, under: Mapping[str, Any], source: str) -> App:
        values = to_plain(_without_none(under))
        app = ReusedApp(
            name=self.name,
            help=self.about,
            config=Dict(values, source=source) if values else None,
            default_parameter=Parameter(converter=_convert, consume_multiple=True),
            help_formatter=HelpOfValues(values, self.hidden),
            group_parameters=_OPTIONS,
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
            version_flags=(),
            help_format="markdown",
        )
        app["--help"].group = _GENERAL
        # What `_define` makes the signature of.
        recipe = None if self.recipes is None else self.recipes.default
        app.declared = (self.settings, self.beside, recipe, *(each.declared for each in self.shorthands))
        return app

    def _run(self, app: App, argv: Sequence[str], shown: list[tuple[bool, Any]]) -> Settings | None:
        self._define(app, shown)
        try:
            return app(list(argv))
        except CycloptsError as error:
            raise MovaError(refusal(error, app.assemble_argument_collection)) from error

    def _define(self, app: App, shown: list[tuple[bool, Any]]) -> None:
        kind, default = self.settings, self.recipes.default if self.recipes is not None else ""

        def take(settings: Any, print_config: bool, beside: Any) -> Any:
            shown.append((print_config, self.beside() if beside is None else beside))
            # None: nothing was given.
            if settings is None and (missing := _without_default(kind)):
                if print_config:
                    return _template(kind)
                raise MovaError(f"missing: {', '.join(missing)} (--help tells the options)")
            return kind() if settings is None else settings

        general = Parameter(group=_GENERAL)
        with_file: Any = Annotated[Path | None, general]
        flag: Any = Annotated[bool, Parameter(group=_GENERAL, negative="")]
        fields: Any = Annotated[kind, Parameter(name="*")]
        # A dataclass without fields would be shown in the help as an argument of its own.
        given = Parameter(parse=False) if self.beside is Nothing else Parameter(name="*", group=_BESIDE)
        more: Any = Annotated[self.beside, given]
        # Declared for help and completion; `Shorthand.taken_off` has it off the command line by then.
        declared = [each.declared for each in self.shorthands]
        words: Any = [Annotated[kind, shown] for kind, shown in (*declared, *2 * [(Nothing, Parameter(parse=False))])]
        first_word, second_word = words[:2]
        if self.recipes is None:

            def run(
                settings: fields = None,
                *,
                beside: more = None,
                shorthand: first_word = None,
                other_shorthand: second_word = None,
                config: with_file = None,
                print_config: flag = False,
            ) -> Any:
                """Run.

                Parameters
                ----------
                config
                    YAML file of settings, as --print-config prints them; options win over it.
                print_config
                    Print all settings as YAML and stop.
                """
                return take(settings, print_config, beside)

        else:

            def run(
                settings: fields = None,
                *,
                beside: more = None,
                shorthand: first_word = None,
                other_shorthand: second_word = None,
                recipe: Annotated[str, general] = default,
                config: with_file = None,
                print_config: flag = False,
            ) -> Any:
                """Run.

                Parameters
                ----------
                recipe
                    Where the settings start from: a name, or a .yaml file.
                config
                    YAML file of settings that win over the recipe's; options win over both.
                print_config
                    Print all settings as YAML and stop.
                """
                return take(settings, print_config, beside)

        app.default(run)


def is_help(argv: Sequence[str]) -> bool:
    """Whether a command line asks for the list of commands: it is empty, or its first word asks for help."""
    return not argv or argv[0] in ("-h", "--help", "help")


def choose_command(argv: Sequence[str], commands: Mapping[str, Named], what: str) -> tuple[str, Named]:
    """The named one of several commands, by the first word. MovaError with the nearest name for an unknown one."""
    if argv[0] not in commands:
        known = f"Known: {', '.join(commands)}"
        raise MovaError(f"unknown {what} '{argv[0]}'.{suggest(argv[0], commands)} {known}")
    return argv[0], commands[argv[0]]


def _value_of(option: str, argv: Sequence[str]) -> str | None:
    """The value of an option that must be known before the rest can be parsed over it; the last one counts."""
    found = None
    for word, following in itertools.zip_longest(argv, argv[1:]):
        if word == option and following is not None:
            found = following
        elif word.startswith(f"{option}="):
            found = word.partition("=")[2]
    return found


def _without_none(settings: Mapping[str, Any]) -> dict[str, Any]:
    """None stands for "not given", which a configuration source says by silence."""
    return {
        name: _without_none(value) if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if value is not None
    }


def _said(tokens: Any) -> list[Any]:
    """Tokens that hold words: an empty list of a file is a token with that list, and a setting with keys has none."""
    return [] if isinstance(tokens, Mapping) else [token for token in tokens if token.implicit_value != []]


def _convert(kind: Any, tokens: Any) -> Any:
    """cyclopts' conversion, which rounds: here a fraction is refused where a whole number is wanted."""
    kinds = {member for outer in (kind, *get_args(kind)) for member in (outer, *get_args(outer))}
    said = _said(tokens)
    # A path that is empty, as by an unset variable in a script, would be the current folder.
    if Path in kinds and not all(token.value.strip() for token in said):
        raise ValueError(EMPTY)
    if int in kinds and float not in kinds:
        for token in said:
            if not _WHOLE.fullmatch(token.value.strip()):
                raise ValueError(f"a whole number is wanted, got '{token.value}'")
    return converted(kind, tokens)


def _without_default(kind: type) -> list[str]:
    """What must be given, as it is typed."""
    wanted = [
        field
        for field in dataclasses.fields(kind)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    return [f"--{field.name.replace('_', '-')}" if field.kw_only else field.name.upper() for field in wanted]


def _template(kind: type) -> dict[str, Any]:
    """A command's settings with their defaults; None for those that must be given."""
    template: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        made = field.default_factory() if field.default_factory is not dataclasses.MISSING else None
        template[field.name] = made if field.default is dataclasses.MISSING else field.default
    return template
