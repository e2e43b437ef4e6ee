"""Program of test_documents: evaluations, one after the other.

  python tests/documented.py < COMMANDS, a JSON list of lists of flags

In one process, because TensorFlow takes seconds to start.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from options import parse

from ressl_keras.commands.evaluate import EvaluateOptions, evaluate

for flags in json.load(sys.stdin):
    evaluate(parse(EvaluateOptions, *flags))
