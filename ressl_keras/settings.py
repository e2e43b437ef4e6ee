"""How a setting is declared, checked, read from text and written as a flag.

A command's options are the fields of a frozen dataclass. Everything else that knows
them is derived from the fields: flags, help, checks, `flags.txt`, the comparison with
an earlier run.
"""

import dataclasses
import functools
import math
import numbers
import os
import types
import typing

from ressl_keras.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Setting:
    """One option of a command.

    Attributes:
        help: what it is, for people.
        group: heading that the help shows it under.
        first: whether it is among those that matter first.
        resumable: whether a resumed run may change it.
        low: smallest value allowed, or None.
        above: number that the value must be larger than, or None.
        high: largest value allowed, or None.
        choices: the values allowed, or empty.
        length: number of elements of a list, or None for any up to 16.
        required: whether a command refuses to run without it.
        path: whether it is a path, where `~` stands for the user's home.
        name: name of the field.
        type: bool, int, float, str, or the type of a list's elements.
        listed: whether it is a list.
        optional: whether None is a value.
        default: value of the field unless another is given.
    """

    help: str
    group: str
    first: bool = False
    resumable: bool = False
    low: float | None = None
    above: float | None = None
    high: float | None = None
    choices: tuple = ()
    length: int | None = None
    required: bool = False
    path: bool = False
    name: str = ""
    type: type = str
    listed: bool = False
    optional: bool = False
    default: object = None

    @property
    def wanted(self):
        """What a value must be, in words."""
        if self.choices:
            *others, last = map(str, self.choices)
            words = f"{', '.join(others)} or {last}" if others else last
            return f"a comma-separated list of {words}" if self.listed else words
        if self.type in (str, bool):
            return {str: "a text", bool: "true or false"}[self.type]
        count = f"{self.length} " if self.listed and self.length else ""
        one = {int: "an integer", float: "a number"}[self.type]
        words = f"{count}{one.split()[1]}s" if self.listed else one
        if self.above is not None:
            words += f" above {self.above:g}"
            words += f", at most {self.high:g}" if self.high is not None else ""
        elif self.low is not None and self.high is not None:
            words += f" from {self.low:,} to {self.high:,}"
        elif self.low is not None:
            words += f" of at least {self.low:,}"
        return f"{words}, separated by commas" if self.listed else words

    def check(self, value):
        """The value in its own type.

        Raises:
            ValueError: if it is not what is wanted.
        """
        if value is None and (self.optional or self.required):
            return None
        if not self.listed:
            return self._check_one(value)
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise ValueError(self.wanted)
        values = tuple(map(self._check_one, value))
        if len(values) != (self.length or len(values)) or len(values) > 16:
            raise ValueError(self.wanted)
        if not values and self.optional:
            return None
        return values

    def _check_one(self, value):
        kinds = {bool: bool, int: numbers.Integral, float: numbers.Real, str: str}
        fits = isinstance(value, kinds[self.type])
        if not fits or (self.type is not bool and isinstance(value, bool)):
            raise ValueError(self.wanted)
        value = self.type(value)
        if self.path:
            value = os.path.expanduser(value)
        if self.type in (int, float) and not (
            math.isfinite(value)
            and (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.high is None or value <= self.high)
        ):
            raise ValueError(self.wanted)
        if self.choices and value not in self.choices:
            raise ValueError(self.wanted)
        return value

    def parse(self, text):
        """The value that a text stands for.

        Raises:
            ValueError: if the text stands for none.
        """
        if self.listed:
            return self.check([self._parse_one(part) for part in text.split(",")])
        return self.check(self._parse_one(text))

    def _parse_one(self, text):
        text = text.strip() if self.type is not str else text
        if self.type is bool:
            known = {"true": True, "1": True, "false": False, "0": False}
            return known.get(text.lower(), text)
        try:
            return self.type(text)
        except ValueError:
            raise ValueError(self.wanted) from None

    def format(self, value):
        """The text that `parse` reads as the value."""
        if self.listed:
            return ",".join(map(str, value))
        return str(value)

    def flag(self, value):
        """The value as a line of a flagfile; empty for None."""
        if value is None:
            return ""
        if self.type is bool:
            return f"--{self.name}" if value else f"--no{self.name}"
        return f"--{self.name}={self.format(value)}"


def setting(default, help, *, group, **options):
    """A field of an options dataclass; `options` are attributes of `Setting`."""
    metadata = {"setting": Setting(help, group, **options)}
    return dataclasses.field(default=default, metadata=metadata)


@functools.cache
def settings_of(options_class):
    """Dict from name to `Setting` of a dataclass; its own before inherited ones."""
    hints = typing.get_type_hints(options_class)
    names = {}
    for base in options_class.__mro__:
        names.update(dict.fromkeys(getattr(base, "__annotations__", ())))
    fields = {field.name: field for field in dataclasses.fields(options_class)}
    found = {}
    for name in names:
        hint, field = hints[name], fields[name]
        parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        kind = parts[0]
        listed = typing.get_origin(kind) is tuple
        found[name] = dataclasses.replace(
            field.metadata["setting"],
            name=name,
            type=typing.get_args(kind)[0] if listed else kind,
            listed=listed,
            optional=types.NoneType in parts,
            default=field.default,
        )
    return found


class Options:
    """Base of the options dataclasses: checks every field when it is made."""

    def __post_init__(self):
        for name, known in settings_of(type(self)).items():
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, known.check(value))
            except ValueError as error:
                raise UsageError(f"{name} must be {error}; got {value!r}.") from None

    def to_flags(self):
        """Lines of a flagfile that stands for these options."""
        known = settings_of(type(self))
        lines = [known[name].flag(getattr(self, name)) for name in known]
        return [line for line in lines if line]

    def without_effect(self, unused):
        """Lines of text about options that were given and have no effect.

        Args:
            unused: dict from the names of options that are not read to the reason,
                such as `without --init`.
        """
        known = settings_of(type(self))
        for name, reason in unused.items():
            value = getattr(self, name)
            if value != known[name].default:
                yield f"Warning: {known[name].flag(value)} has no effect {reason}."

    @classmethod
    def from_flags(cls, lines):
        """Options from the lines of a flagfile; the rest has its default.

        Args:
            lines: list of strings. Comments, and flags that are not among the
                options, are passed over: other versions may know them.

        Raises:
            UsageError: if a line's value is not allowed.
        """
        known, values = settings_of(cls), {}
        for line in map(str.strip, lines):
            name, equals, text = line.lstrip("-").partition("=")
            if not line.startswith("-"):
                continue
            if not equals:
                name, text = name.removeprefix("no"), str(name in known)
            if name in known and (equals or known[name].type is bool):
                try:
                    values[name] = known[name].parse(text)
                except ValueError as error:
                    raise UsageError(f"{line}: must be {error}.") from None
        return cls(**values)
