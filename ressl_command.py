"""What the commands share: their help, what is wrong with a flag, how they end.

A module apart from the package, which imports TensorFlow: help and a misspelt flag are
answered at once. Import it first; it sets what TensorFlow and Keras read when they are
imported.
"""

import difflib
import logging
import os
import re
import shlex
import signal
import sys
import textwrap

from absl import app, flags
from absl import logging as absl_logging

# oneDNN's kernels make a ResNet step 1.7 times as fast on CPUs where TensorFlow leaves
# them off.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

_WIDTH = 80


def run(main, groups, takes_more=False):
    """Runs a command: flags, help, and one line and status 1 for what cannot be done.

    Args:
        main: called with the arguments that follow `--`, a list of strings.
        groups: what `--help` shows, a dict from a heading to the names of its flags in
            two strings: those that matter first, and the others.
        takes_more: whether anything may follow `--`.
    """
    app.run(
        lambda arguments: _guard(main, arguments),
        flags_parser=lambda argv: parse(argv, groups, takes_more),
    )


def parse(argv, groups, takes_more=False):
    """Parses the flags, or prints help or what is wrong, and exits.

    Args:
        argv: program and arguments, a list of strings.
        groups: as in `run`.
        takes_more: as in `run`.

    Returns:
        The arguments that follow `--`.
    """
    end = argv.index("--") if takes_more and "--" in argv else len(argv)
    words = argv[1:end]
    if {"--help", "-h", "-?", "--helpshort"} & set(words):
        print(help_text(sys.modules["__main__"].__doc__, groups))
        sys.exit(0)
    mistake = _first_mistake(words)
    try:
        if not mistake:
            flags.FLAGS([argv[0], *words])
    except (flags.Error, ValueError) as error:
        mistake = _with_place(error, words)
    if mistake:
        say_error(mistake)
        sys.exit(1)
    if not flags.FLAGS["verbosity"].present:
        absl_logging.set_verbosity(absl_logging.WARNING)  # TFDS: every file it opens
        # It advises against tracing a function for each encoder, as one must.
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
        # It warns of every new attempt at a download.
        logging.getLogger("urllib3").setLevel(logging.ERROR)
    return argv[end + 1 :]


def _guard(main, arguments):
    try:
        main(arguments)
    except KeyboardInterrupt:
        print(f"\nStopped. To start again:\n  {typed()}")
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        from ressl_keras.errors import UsageError

        if not isinstance(error, UsageError):
            raise
        say_error(error)
        leave(1)


def say_error(message):
    """Prints what is wrong in one line on stderr."""
    program = os.path.basename(sys.argv[0])
    print(f"{program}: error: {message}", file=sys.stderr, flush=True)


def leave(status):
    """Ends the process at once, whatever other workers do."""
    sys.stdout.flush()
    # Not sys.exit: with a lost worker TensorFlow's own shutdown would wait for it.
    os._exit(status)


def typed():
    """The command that was given, to be given again."""
    program, *arguments = sys.orig_argv
    return shlex.join([os.path.basename(program), *arguments])


def help_text(description, groups):
    """The flags in two parts, the first those that matter first, by group.

    Args:
        description: text above them.
        groups: as in `run`.

    Returns:
        Lines of at most 80 characters.
    """
    lines = [description.strip(), "", "The flags that matter first:"]
    for part in (0, 1):
        if part and any(names[1] for names in groups.values()):
            lines += ["", "All others:"]
        for heading, names in groups.items():
            if names[part].split():
                lines += ["", heading]
                for name in names[part].split():
                    lines += _help_lines(flags.FLAGS[name])
    lines += [
        "",
        "--flagfile=FILE reads flags from a file, one a line; later flags win.",
        "--helpfull lists the flags of the libraries, too.",
    ]
    return "\n".join(lines)


def _help_lines(flag):
    """A flag's name, values, meaning and default; the text in a column of its own."""
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    text = flag.help
    if "Default:" not in text and flag.default not in (None, []):
        value = flag.default
        if isinstance(value, list):
            value = ",".join(value)
        elif isinstance(value, bool):
            value = "yes" if value else "no"
        elif isinstance(value, float):
            value = f"{value:g}"
        text = f"{text} Default: {value}."
    return textwrap.wrap(
        text, _WIDTH, initial_indent=f"  {name:<22} ", subsequent_indent=" " * 25
    )


def _first_mistake(words):
    """What is wrong with the first word that is no flag or has a wrong value."""
    try:
        words = iter(list(_unfold((None, word) for word in words)))
    except _Mistake as mistake:
        return str(mistake)
    for place, word in words:
        name, equals, value = word.lstrip("-").partition("=")
        flag = _flag(name)
        if not name or not word.startswith("-"):
            return f"{_at(place)}'{word}' is no flag; flags look like --name=value."
        if flag is None:
            return f"{_at(place)}There is no flag --{name}. {_hint(name)}"
        if flag.boolean and not equals:
            continue
        if not equals:
            _, value = next(words, (place, None))
        if value is None:
            return f"{_at(place)}--{name} needs a value: --{name}=..."
        try:
            flag.parser.parse(value)
        except (ValueError, TypeError) as error:
            wanted = flag.parser.syntactic_help
            wanted = f"must be {wanted}" if wanted else str(error)
            return f"{_at(place)}--{name}={value}: {wanted}."
    return None


class _Mistake(Exception):
    pass


def _unfold(words, inside=()):
    """Puts the lines of flagfiles in their place, each with its file and number."""
    words = iter(words)
    for place, word in words:
        name, equals, path = word.lstrip("-").partition("=")
        if name != "flagfile" or not word.startswith("-"):
            yield place, word
            continue
        if not equals:
            _, path = next(words, (place, ""))
        path = os.path.expanduser(path)
        if path in inside:
            raise _Mistake(f"{_at(place)}{path} reads itself.")
        yield from _unfold(_lines(path, place), (*inside, path))


def _lines(path, place):
    try:
        with open(path) as file:
            lines = [line.strip() for line in file]
    except OSError as error:
        raise _Mistake(
            f"{_at(place)}The flagfile {path or '(none given)'} cannot be read: "
            f"{error.strerror} (from here, {os.getcwd()})."
        ) from error
    return [
        (f"{path}, line {number}", line)
        for number, line in enumerate(lines, 1)
        if line and not line.startswith(("#", "//"))
    ]


def _at(place):
    return f"{place}: " if place else ""


def _flag(name):
    """The flag of this name, or of the name behind a `no`; None if there is none."""
    if name in flags.FLAGS:
        return flags.FLAGS[name]
    positive = name.removeprefix("no")
    if positive in flags.FLAGS and flags.FLAGS[positive].boolean:
        return flags.FLAGS[positive]
    return None


def _hint(name):
    near = difflib.get_close_matches(name.lower(), [*flags.FLAGS, "flagfile"], n=1)
    return f"Did you mean --{near[0]}?" if near else "--help lists the flags."


def _with_place(error, words):
    """What a validator says, behind the place and the words that it is about."""
    message = re.sub(r"(?m)^flag (?=--)", "", str(error)).replace("\n", "; ")
    for place, word in reversed(list(_unfold((None, word) for word in words))):
        name = word.lstrip("-").partition("=")[0]
        if message.startswith(f"--{name}="):
            return f"{_at(place)}{word}: {message.partition(': ')[2]}."
    return message
