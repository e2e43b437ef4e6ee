"""Classifies images with a classifier that ressl-evaluate kept.

  ressl-evaluate --encoder=runs/mine --data_dir=my_images --protocol=finetune \\
      --save_classifier
  ressl-predict --classifier=runs/mine/classifier.keras --data_dir=new_images \\
      --output=predictions.csv

The table has the file, the likeliest classes and their probabilities.
"""

import dataclasses
import os
import shutil

from ressl_keras import cli
from ressl_keras.commands.data_options import DataOptions
from ressl_keras.commands.device_options import DeviceOptions
from ressl_keras.settings import setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictOptions(DataOptions, DeviceOptions):
    """Flags of the command."""

    classifier: str = setting(
        None,
        "The classifier.keras of an evaluation with --save_classifier.",
        group="Classifier",
        first=True,
        required=True,
        path=True,
    )
    top: int = setting(
        1,
        "Classes listed for each image.",
        group="Output",
        first=True,
        low=1,
        high=1000,
    )
    output: str = setting(
        "predictions.csv", "CSV file to write.", group="Output", first=True, path=True
    )


def main():
    """The command."""
    cli.run(predict, PredictOptions, __doc__)


def predict(options):
    """Classifies as the options say."""
    from ressl_keras import devices
    from ressl_keras.embeddings import predicting
    from ressl_keras.evaluation.features import Resources

    strategy, chief, log = options.start()
    with strategy.scope():
        classifier, class_names = predicting.load_classifier(options.classifier)
    dataset = options.load(classifier.decoder, log=log)
    # What an interrupted call goes on from.
    work = f"{options.output}.work"
    resources = Resources(strategy=strategy, cache=work, log=log)
    top = min(options.top, len(class_names))
    rows = predicting.predict(classifier, class_names, dataset, resources, top)
    if chief:
        count, right, labelled = predicting.write(options.output, rows, top)
        shutil.rmtree(work, ignore_errors=True)
        log(f"{count:,} images classified in {os.path.abspath(options.output)}.")
        if labelled:
            log(
                f"Of {labelled:,} with a label {right:,} have that class, "
                f"{100 * right / labelled:.2f} %."
            )
    else:
        list(rows)
    devices.barrier(strategy)


if __name__ == "__main__":
    main()
