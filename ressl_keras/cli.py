"""What the commands share: flags, help, messages about mistakes, exit codes.

Nothing here imports TensorFlow, so that help and a misspelt flag are answered at once.
Importing this module sets environment variables that TensorFlow and Keras read when
they are imported.
"""

import contextlib
import itertools
import logging
import os
import re
import shlex
import signal
import sys
import textwrap

from absl import app, flags
from absl import logging as absl_logging

from ressl_keras.errors import UsageError, closest, disk_error, first_line
from ressl_keras.files import read_lines
from ressl_keras.settings import settings_of

# With oneDNN's kernels a ResNet step is 1.7 times as fast on CPUs where TensorFlow
# leaves them off.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

_WIDTH = 80
# The order in which the help shows groups; others follow.
_GROUPS = ("Run", "Runs", "Encoder", "Data", "Model", "Method", "Augmentation")
_GROUPS += ("Protocol", "Training", "Devices", "Output")
_ENDING = ".flags"


def run(main, options_class, description, takes_more=False, takes_words=False):
    """Runs a command, with flags made from the fields of a dataclass.

    What cannot be done is one line on stderr and exit status 1.

    Args:
        main: called with the options; with `takes_more` also with the arguments that
            follow `--`, a list of strings.
        options_class: dataclass of `settings.setting` fields.
        description: text above the flags in the help.
        takes_more: whether arguments may follow `--`.
        takes_words: whether words without dashes are arguments, passed likewise.
    """
    with contextlib.suppress(AttributeError):  # a replaced stream may lack it
        sys.stdout.reconfigure(errors="backslashreplace")  # names that are no UTF-8
    define_flags(options_class, flags.FLAGS)
    rest = []

    def parse_flags(argv):
        options = {"takes_more": takes_more, "takes_words": takes_words}
        rest[:] = parse(argv, options_class, description, **options)
        return argv[:1]

    def call(_):
        more = [rest] if takes_more or takes_words else []
        guard(lambda: main(options_of(options_class, flags.FLAGS), *more))

    app.run(call, flags_parser=parse_flags)


def define_flags(options_class, values):
    """Defines an absl flag for every option.

    Args:
        options_class: dataclass of `settings.setting` fields.
        values: `absl.flags.FlagValues` to define them in.
    """
    for name, known in settings_of(options_class).items():
        if known.type is bool:
            flags.DEFINE_boolean(name, known.default, known.help, flag_values=values)
            continue
        flags.DEFINE(
            _Parser(known),
            name,
            known.default,
            known.help,
            values,
            _Serializer(known),
        )


def options_of(options_class, values):
    """The options that the flags stand for."""
    names = settings_of(options_class)
    return options_class(**{name: values[name].value for name in names})


class _Parser(flags.ArgumentParser):
    """Parses a flag as its setting does."""

    def __init__(self, known):
        self.known, self.syntactic_help = known, known.wanted

    def parse(self, argument):
        if not isinstance(argument, str):
            return argument  # the default
        return self.known.parse(argument)

    def flag_type(self):
        return self.known.type.__name__


class _Serializer(flags.ArgumentSerializer):
    def __init__(self, known):
        self.known = known

    def serialize(self, value):
        return self.known.format(value)


def parse(
    argv,
    options_class,
    description,
    takes_more=False,
    values=None,
    takes_words=False,
):
    """Parses the flags, or prints help or what is wrong, and exits.

    Args:
        argv: program and arguments, a list of strings.
        options_class: as in `run`.
        description: as in `run`.
        takes_more: as in `run`.
        values: `absl.flags.FlagValues`; by default those of the process.
        takes_words: as in `run`.

    Returns:
        The arguments that follow `--` or are words without dashes.
    """
    values = flags.FLAGS if values is None else values
    end = argv.index("--") if takes_more and "--" in argv else len(argv)
    words, others = argv[1:end], argv[end + 1 :]
    if {"--help", "-h", "-?", "--helpshort"} & set(words):
        print(help_text(description, options_class))
        sys.exit(0)
    if takes_words:
        words, others = _split(words, values)
    try:
        lines = list(_unfold((None, word) for word in words))
        mistake = _first_mistake(lines, values) or _missing(options_class, lines)
        if not mistake:
            values([argv[0], *(word for _, word in lines)])
    except (_Mistake, flags.Error, ValueError) as error:
        mistake = str(error)
    if mistake:
        print_error(mistake)
        sys.exit(1)
    _quiet_libraries(values)
    return others


def _split(words, values):
    """Flags, each with its value, and words that are neither."""
    words, flagged, others = iter(words), [], []
    for word in words:
        (flagged if word.startswith("-") else others).append(word)
        name, equals, _ = word.lstrip("-").partition("=")
        flag = _flag(name, values)
        valued = name in ("flagfile", "recipe")
        valued |= flag is not None and not flag.boolean
        if word.startswith("-") and valued and not equals:
            flagged += itertools.islice(words, 1)
    return flagged, others


def _quiet_libraries(values):
    if "verbosity" in values and values["verbosity"].present:
        return
    absl_logging.set_verbosity(absl_logging.WARNING)  # TFDS names every file it opens
    # It advises against tracing a function for each encoder, which is needed here.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    # It warns of every retry of a download.
    logging.getLogger("urllib3").setLevel(logging.ERROR)


def guard(main):
    """Calls a function; what stops it becomes one line on stderr and an exit status."""
    try:
        main()
    except KeyboardInterrupt:
        print(f"\nStopped. To start again:\n  {command_line()}")
        sys.exit(128 + signal.SIGINT)
    except UsageError as error:
        print_error(error)
        leave(1)
    except Exception as error:
        named = isinstance(error, OSError) and error.filename and error.strerror
        if named:
            print_error(f"{os.fsdecode(error.filename)}: {error.strerror}.")
        elif disk_error(error):
            print_error(first_line(error))
        else:
            raise
        leave(1)


def print_error(message):
    """Prints what is wrong in one line on stderr."""
    program = os.path.basename(sys.argv[0])
    line = " ".join(str(message).split())
    print(f"{program}: error: {line}", file=sys.stderr, flush=True)


def leave(status):
    """Ends the process at once, whatever other workers do."""
    sys.stdout.flush()
    # Not sys.exit: after a worker is lost TensorFlow's own shutdown waits for it.
    os._exit(status)


def command_line():
    """The command as it was given, to be given again."""
    program, *arguments = sys.orig_argv
    return shlex.join([os.path.basename(program), *arguments])


def help_text(description, options_class):
    """The flags by group: first those that matter first, then the others.

    Args:
        description: text above them.
        options_class: as in `run`.

    Returns:
        Lines of at most 80 characters.
    """
    settings = settings_of(options_class).values()
    groups = dict.fromkeys([*_GROUPS, *(known.group for known in settings)])
    lines = [description.strip(), "", "The flags that matter first:"]
    for first in (True, False):
        if not first and not all(known.first for known in settings):
            lines += ["", "All others:"]
        for group in groups:
            shown = [s for s in settings if s.group == group and s.first == first]
            if shown:
                lines += ["", group]
                for known in shown:
                    lines += _help_lines(known)
    lines += [
        "",
        "--flagfile=FILE reads flags from a file, one per line; later flags win.",
        "--recipe=NAME reads a flagfile that comes with the package.",
        "--helpfull also lists the flags of the libraries.",
    ]
    return "\n".join(lines)


def _help_lines(known):
    """A flag's name, meaning and default; the text in a column of its own."""
    boolean = known.type is bool
    name = f"--[no]{known.name}" if boolean else f"--{known.name}"
    text = known.help
    if "Default:" not in text and known.default not in (None, ()):
        value = known.format(known.default)
        if boolean:
            value = "yes" if known.default else "no"
        elif isinstance(known.default, float):
            value = f"{known.default:g}"
        text = f"{text} Default: {value}."
    return textwrap.wrap(
        text, _WIDTH, initial_indent=f"  {name:<22} ", subsequent_indent=" " * 25
    )


def _first_mistake(lines, values):
    """What is wrong with the first word that is no flag or has a wrong value."""
    lines = iter(lines)
    for location, word in lines:
        name, equals, value = word.lstrip("-").partition("=")
        flag = _flag(name, values)
        if not name or not word.startswith("-"):
            wanted = "flags have the form --name=value"
            return f"{_at(location)}'{word}' is not a flag; {wanted}."
        if flag is None:
            return f"{_at(location)}There is no flag --{name}. {_hint(name, values)}"
        if flag.boolean and not equals:
            continue
        if not equals:
            _, value = next(lines, (location, None))
        if value is None:
            return f"{_at(location)}--{name} needs a value: --{name}=..."
        try:
            flag.parser.parse(value)
        except (ValueError, TypeError) as error:
            wanted = flag.parser.syntactic_help
            wanted = "true or false" if flag.boolean else wanted
            wanted = f"must be {wanted}" if wanted else str(error)
            return f"{_at(location)}--{name}={value}: {wanted}."
    return None


def _missing(options_class, lines):
    given = {word.lstrip("-").partition("=")[0] for _, word in lines}
    for name, known in settings_of(options_class).items():
        if known.required and name not in given:
            return f"--{name} is needed: {known.help}"
    return None


class _Mistake(UsageError):
    """What is wrong with the words of a command."""


def _unfold(words, inside=()):
    """Replaces flagfiles and recipes by their lines, each with file and number."""
    words = iter(words)
    for location, word in words:
        name, equals, path = word.lstrip("-").partition("=")
        if name not in ("flagfile", "recipe") or not word.startswith("-"):
            yield location, word
            continue
        if not equals:
            _, path = next(words, (location, ""))
        path = recipe_path(path, location) if name == "recipe" else path
        path = os.path.expanduser(path)
        if path in inside:
            raise _Mistake(f"{_at(location)}{path} reads itself.")
        yield from _unfold(_flags_in(path, location), (*inside, path))


def _flags_in(path, location):
    try:
        lines = [line.strip() for line in read_lines(path)]
    except OSError as error:
        raise _Mistake(
            f"{_at(location)}The flagfile {path or '(none given)'} cannot be read: "
            f"{error.strerror} (from here, {os.getcwd()})."
        ) from error
    return [
        (f"{path}, line {number}", line)
        for number, line in enumerate(lines, 1)
        if line and not line.startswith(("#", "//"))
    ]


def recipe_folder():
    """Folder of the recipes: inside an installed package, or beside the sources."""
    package = os.path.dirname(os.path.abspath(__file__))
    installed = os.path.join(package, "recipes")
    return installed if os.path.isdir(installed) else os.path.join(package, "../flags")


def recipe_path(name, location=None):
    """Path of the flagfile of a recipe.

    Raises:
        UsageError: if there is none, with the nearest names.
    """
    folder = recipe_folder()
    names = sorted(
        file.removesuffix(_ENDING)
        for file in os.listdir(folder)
        if file.endswith(_ENDING)
    )
    if name not in names:
        raise _Mistake(
            f"{_at(location)}There is no recipe {name}. {closest(name, names)}"
        )
    return os.path.relpath(os.path.join(folder, name + _ENDING))


def _at(location):
    return f"{location}: " if location else ""


def _flag(name, values):
    """The flag of this name, or of the name behind a `no`; None if there is none."""
    if name in values:
        return values[name]
    positive = name.removeprefix("no")
    if positive in values and values[positive].boolean:
        return values[positive]
    return None


def _hint(name, values):
    found = closest(name, [*values, "flagfile", "recipe"], count=1)
    found = re.sub(r"Did you mean (\w+)\?", r"Did you mean --\1?", found)
    return found if found.startswith("Did") else "--help lists the flags."
