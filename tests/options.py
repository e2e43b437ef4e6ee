"""The options that words on a command line stand for, as a command gets them."""

from absl import flags

from ressl_keras import cli


def parse(options_class, *words):
    """Options of a command, parsed by flags of their own."""
    values = flags.FlagValues()
    cli.define_flags(options_class, values)
    cli.parse(["command", *words], options_class, "", values=values)
    return cli.options_of(options_class, values)
