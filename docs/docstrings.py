"""Prepares the package's docstrings for mkdocstrings.

Three things are unknown to its parser: Keras' `Call arguments:`, an `Example:` that is
not indented, and the fields of an options dataclass, whose help is in `setting(...)`.
"""

import dataclasses
import importlib
import re

import griffe

from ressl_keras.settings import Options, settings_of


class Docstrings(griffe.Extension):
    """Rewrites docstrings as Google-style sections."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring is not None:
            obj.docstring.value = rewritten(obj.docstring.value)

    def on_class(self, *, cls, **kwargs):
        """Documents the settings of a class as its arguments."""
        made = getattr(importlib.import_module(cls.module.path), cls.name, None)
        if not dataclasses.is_dataclass(made) or not issubclass(made, Options):
            return
        lines = []
        for name, known in settings_of(made).items():
            if name in cls.attributes:
                cls.parameters[name].default = repr(known.default)
                lines.append(f"    {name}: {known.help}")
        if lines and cls.docstring is not None:
            summary, *rest = cls.docstring.value.split("\n\n", 1)
            sections = [summary, "\n".join(["Args:", *lines]), *rest]
            cls.docstring.value = "\n\n".join(sections)


def rewritten(text):
    """A docstring with `Other parameters` for call arguments and fenced examples."""
    text = re.sub(r"(?m)^Call arguments:$", "Other parameters: Call arguments", text)
    # A blank line ends an example.
    return re.sub(r"(?m)^(>>> .*(?:\n.+)*)", r"```pycon\n\1\n```", text)
