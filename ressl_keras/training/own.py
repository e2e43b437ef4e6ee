"""Names in the user's own modules: networks and objectives."""

import importlib
import os
import sys

from ressl_keras.errors import UsageError


def imported(spec, flag):
    """What a flag names as MODULE:NAME, in the current folder or installed.

    Args:
        spec: the value of the flag.
        flag: name of the flag.

    Raises:
        UsageError: if there is no such module, or nothing that can be called in it.
    """
    module_name, colon, name = spec.partition(":")
    if not colon or not name:
        raise UsageError(f"--{flag}={spec}: expected MODULE:NAME.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # the path of an installed command lacks it
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(f"--{flag}={spec}: {error}.") from error
    if not callable(getattr(module, name, None)):
        raise UsageError(f"--{flag}={spec}: {module_name} has no function {name}.")
    return getattr(module, name)
