"""Program of test_damage: one run undisturbed, and one killed again and again.

  python tests/killed_runs.py FOLDER KILLS [simple]

Children are forked from a process that has imported TensorFlow but not started it,
which saves most of a start. The second kill is in the middle of writing a checkpoint.
`simple` leaves the views' operations out.
"""

import os
import pathlib
import random
import signal
import sys
import time

import small_run

from ressl_keras.training import callbacks, checkpoints

STEPS_AFTER_WHICH_TO_KILL = 5


def run(folder, epochs, simple, report=None, die_while_writing=False):
    if report is not None:
        begin = callbacks.Throughput.on_train_batch_begin

        def on_train_batch_begin(self, batch, logs=None):
            os.write(report, b".")
            begin(self, batch, logs)

        callbacks.Throughput.on_train_batch_begin = on_train_batch_begin
    if die_while_writing:

        def half_written(temporary, path):
            """In a thread, while training goes on; the parent may be the quicker."""
            os.truncate(temporary, os.path.getsize(temporary) // 2)
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)

        checkpoints.replace_on_disk = half_written
    small_run.run(folder, epochs, simple)


def child(*arguments):
    """Forks a run; returns its process."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            run(*arguments)
            status = 0
        finally:
            os._exit(status)
    return process


def main(folder, kills, simple=""):
    kills, folder = int(kills), pathlib.Path(folder)
    # A run of the length of all that is seen, and a little more.
    epochs = kills * STEPS_AFTER_WHICH_TO_KILL // 5 + 2
    moments = random.Random(0)
    for attempt in range(kills):
        source, sink = os.pipe()
        process = child(folder / "killed", epochs, simple, sink, attempt == 1)
        os.close(sink)
        for _ in range(STEPS_AFTER_WHICH_TO_KILL):
            if not os.read(source, 1):
                break
        else:
            time.sleep(moments.uniform(0, 0.05))
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        os.close(source)
        if not os.WIFSIGNALED(status):
            sys.exit(f"attempt {attempt} ended by itself, status {status}")
        if attempt == 1 and not list(folder.glob("killed/checkpoints/writing-*")):
            sys.exit("the second kill left no half checkpoint")
    for name in ("killed", "undisturbed"):
        small_run.run(folder / name, epochs, simple)
    small_run.same_state(folder / "killed", folder / "undisturbed")
    small_run.same_metrics(folder / "killed", folder / "undisturbed")
    if list(folder.glob("killed/**/writing-*")):
        sys.exit("a half checkpoint was left to the end")
    print(f"{kills} kills, {epochs * 5} steps: equal")


if __name__ == "__main__":
    main(*sys.argv[1:])
