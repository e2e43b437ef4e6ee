"""How the package says that a request cannot be met."""

import difflib


class UsageError(ValueError):
    """A request that cannot be met, said in one line for the person who made it.

    The scripts print its message without a traceback and exit with status 1.
    Any other exception is a defect and keeps its traceback.
    """


def near(name, names):
    """A hint at the known names most like an unknown one, case aside."""
    known = {candidate.lower(): candidate for candidate in names}
    matches = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    if not matches:
        return f"Known are {', '.join(sorted(names)[:40])}."
    return f"Did you mean {' or '.join(known[match] for match in matches)}?"
