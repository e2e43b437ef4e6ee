"""Program of test_documents: evaluate.py's commands, one after the other.

  python tests/documented.py < COMMANDS, a JSON list of lists of flags

In one process, because TensorFlow takes seconds to start.
"""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import evaluate

for flags in json.load(sys.stdin):
    evaluate.FLAGS.unparse_flags()
    evaluate.FLAGS(["evaluate.py", *flags])
    evaluate.main([])
