"""Evaluate, write the result, print it and write the report: once for all commands."""

import os

from ressl_keras.encoders.encoder import load_encoder
from ressl_keras.evaluation import protocols as protocols_module
from ressl_keras.evaluation import report
from ressl_keras.run_folder import RunFolder, write_json


def judge(
    encoder,
    dataset,
    output,
    *,
    run=None,
    title=None,
    command=None,
    log=print,
    **options,
):
    """Evaluates an encoder, writes the accuracies as JSON, and a report beside them.

    Args:
        encoder: result of `load_encoder`.
        dataset: `Dataset`.
        output: JSON file to write. `evaluation.json` has its report in `report.html`,
            any other file in a page of its own name.
        run: work directory of the training, or None.
        title: title of the report.
        command: the command that repeats the evaluation, a string.
        log: called with a line of text.
        **options: further arguments of `protocols.evaluate`.

    Returns:
        The accuracies, as of `protocols.evaluate`.
    """
    folder = RunFolder(os.path.dirname(output))
    predictions = protocols_module.Predictions()
    results = protocols_module.evaluate(
        encoder,
        dataset,
        picture=folder.neighbours,
        predictions=predictions,
        log=log,
        **options,
    )
    write_json(output, results)
    table = protocols_module.table(results)
    log(f"{table}\nWritten to {output}." if table else f"Written to {output}.")
    page = folder.report
    if os.path.basename(output) != os.path.basename(folder.evaluation):
        page = f"{os.path.splitext(output)[0]}.html"
    report.try_to_write(
        page,
        log,
        title=title,
        run=run,
        encoder=encoder,
        dataset=dataset,
        results=results,
        predictions=predictions,
        command=command,
    )
    return results


def judge_run(workdir, dataset, evaluated=True, command=None, log=print):
    """Evaluates the encoder of a run where it can, and writes the run's report.

    Args:
        workdir: the run's work directory.
        dataset: `Dataset` of the run.
        evaluated: whether to evaluate the encoder; if not, the report shows only the
            training.
        command: the command that repeats the run, a string.
        log: called with a line of text.
    """
    folder = RunFolder(workdir)
    encoder = load_encoder(folder.encoder) if evaluated else None
    if evaluated and dataset.labelled:
        judge(
            encoder,
            dataset,
            folder.evaluation,
            run=workdir,
            command=command,
            log=log,
        )
        return
    report.try_to_write(
        folder.report,
        log,
        run=workdir,
        encoder=encoder,
        dataset=dataset,
        command=command,
    )
