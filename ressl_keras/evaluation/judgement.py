"""Evaluate, write the result, print it and write the report: once for all commands."""

import contextlib
import os
import re
import shutil

import tensorflow as tf

from ressl_keras import devices
from ressl_keras.encoders.card import write_card
from ressl_keras.encoders.encoder import encoder_hash, is_frozen, load_encoder
from ressl_keras.evaluation import protocols, report
from ressl_keras.evaluation.features import Resources
from ressl_keras.evaluation_options import PROTOCOLS, EvaluationOptions, labels_used
from ressl_keras.files import read_json, write_json
from ressl_keras.run_folder import RunFolder, unfinished


def judge(
    encoder,
    dataset,
    output,
    options=None,
    *,
    strategy=None,
    log=print,
    **about,
):
    """Evaluates an encoder, writes the accuracies as JSON, and a report beside them.

    Accuracies that the file has of the same encoder and data set by other protocols
    stay in it. What an interrupted evaluation goes on from is in a folder beside the
    JSON file; it is removed at the end.

    Args:
        encoder: result of `load_encoder`, called in the scope of the strategy.
        dataset: `Dataset`.
        output: JSON file to write. `evaluation.json` has its report in `report.html`,
            any other file in a page of its own name.
        options: `EvaluationOptions`; None takes the defaults.
        strategy: `tf.distribute.Strategy`, or None for one device. Each of several
            workers makes the same call; the chief writes.
        log: called with a line of text.
        **about: `run`, `title` and `command` of `report.write`.

    Returns:
        The accuracies, as of `protocols.evaluate`.
    """
    folder = RunFolder(os.path.dirname(output))
    options = options or EvaluationOptions()
    resources = Resources(strategy, options.feature_cache, unfinished(output), log)
    predictions = protocols.Predictions()
    with resources.scope():
        initial = initial_of(about.get("run"), encoder)
    results = protocols.run(
        encoder,
        dataset,
        options,
        resources,
        predictions,
        folder.neighbours,
        initial,
        folder,
    )
    if not resources.chief:
        return results
    table = protocols.table(results)
    written = _with_earlier(results, encoder, dataset, read_json(output))
    write_json(output, written)
    log(f"{table}\nWritten to {output}." if table else f"Written to {output}.")
    page = folder.report
    if os.path.basename(output) != os.path.basename(folder.evaluation):
        page = f"{os.path.splitext(output)[0]}.html"
    report.try_to_write(
        page,
        log,
        encoder=encoder,
        dataset=dataset,
        results=written,
        predictions=predictions,
        initial=initial is not None,
        **about,
    )
    if about.get("run"):
        write_card(RunFolder(about["run"]), log)
    _remove_states(resources.work, results)
    return results


def _remove_states(work, results):
    """Removes what an evaluation kept, but for states of protocols that did not run."""
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(work):
            protocol = re.split(r"[-.]", entry.name)[0]
            if protocol in results or protocol not in PROTOCOLS:
                (shutil.rmtree if entry.is_dir() else os.remove)(entry.path)
        with contextlib.suppress(OSError):  # some are left
            os.rmdir(work)


def _with_earlier(results, encoder, dataset, before):
    """The results with what they are of, and those of other protocols of the same."""
    subject = {"encoder": encoder_hash(encoder), "dataset": dataset.name}
    about = dict(subject)
    if dataset.labelled:
        about |= {"test_images": len(dataset.test), "classes": len(dataset.class_names)}
    merged = {
        protocol: values
        for protocol, values in before.items()
        if isinstance(values, dict) and subject.items() <= values.items()
    }
    merged |= {protocol: {**values, **about} for protocol, values in results.items()}
    return {protocol: merged[protocol] for protocol in PROTOCOLS if protocol in merged}


def initial_of(run, encoder):
    """The encoder that a run began with, to compare its encoder with.

    Args:
        run: work directory of the training, or None.
        encoder: result of `load_encoder`.

    Returns:
        A `keras.Model`; None where the run has kept none, or `encoder` is another
        network, such as one with a projector.
    """
    if run is None or is_frozen(encoder) or not RunFolder(run).has_initial():
        return None
    initial = load_encoder(RunFolder(run).initial)
    return initial if _structure(initial) == _structure(encoder) else None


def _structure(encoder):
    """What two states of one network have in common."""
    kinds = [type(layer).__name__ for layer in encoder.layers]
    return kinds, [tuple(weight.shape) for weight in encoder.weights]


def judge_run(workdir, dataset, evaluated=True, command=None, log=print, strategy=None):
    """Evaluates the encoder of a run where it can, and writes the run's report.

    Args:
        workdir: the run's work directory.
        dataset: `Dataset` of the run.
        evaluated: whether to evaluate the encoder; if not, the report shows only the
            training.
        command: the command that repeats the run, a string.
        log: called with a line of text.
        strategy: as in `judge`.
    """
    folder, encoder = RunFolder(workdir), None
    strategy = strategy or tf.distribute.get_strategy()
    if evaluated:
        devices.barrier(strategy)  # the chief has written the encoder
        with strategy.scope():
            encoder = load_encoder(folder.encoder)
    about = {"run": workdir, "command": command}
    if evaluated and dataset.labelled:
        judge(encoder, dataset, folder.evaluation, strategy=strategy, log=log, **about)
    elif devices.is_chief(strategy):
        report.try_to_write(
            folder.report, log, encoder=encoder, dataset=dataset, **about
        )


def report_again(workdir, output, dataset=None, command=None, log=print):
    """Draws the report of a run again, from its files; nothing is evaluated anew.

    Args:
        workdir: the run's work directory.
        output: HTML file to write; None takes the run's report.
        dataset: `Dataset` of the run, for neighbours, map and classes; None leaves
            them out.
        command: the command that repeats the run, a string.
        log: called with a line of text.

    Returns:
        Path of the page.
    """
    folder = RunFolder(workdir)
    results, encoder, predictions = read_json(folder.evaluation), None, None
    if dataset is not None and folder.has_encoder():
        encoder = load_encoder(folder.encoder)
        # Of some of the labels the choice is not known any more.
        known = "knn" in results and not labels_used(results["knn"])
        known = known and results["knn"].get("dataset", dataset.name) == dataset.name
        if dataset.labelled and known:
            log("Extracting features.")
            predictions = protocols.predict(encoder, dataset)
    return report.write(
        output or folder.report,
        run=workdir,
        encoder=encoder,
        dataset=dataset,
        results=results,
        predictions=predictions,
        initial=folder.has_initial(),
        command=command,
    )
