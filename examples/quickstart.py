# %% [markdown]
# # ReSSL, from images to a classifier
#
# A tour in seven cells: drawn shapes, a small network, half a minute on two CPU cores.
# Editors that support percent cells run it like a notebook; so does
# `python -m examples.quickstart`, from the repository's root.

# %%
import os

import keras
import numpy as np

from ressl_keras import (
    SGD,
    InfoNCE,
    Relation,
    ReSSL,
    build_backbone,
    strong_view,
    warmup_cosine,
    weak_view,
)
from ressl_keras.data import shapes
from ressl_keras.data.images import ArrayImages
from ressl_keras.data.pipeline import training_batches
from ressl_keras.encoders.building import build_encoder
from ressl_keras.evaluation import pictures
from ressl_keras.evaluation.classifiers import finetune
from ressl_keras.evaluation.features import extract
from ressl_keras.evaluation.knn import knn_accuracy
from ressl_keras.method.objectives import WarmUp

keras.utils.set_random_seed(0)
os.makedirs("runs/tour", exist_ok=True)

# %% [markdown]
# ## Data
# Pretraining reads the images only. The labels serve the evaluation.

# %%
train = ArrayImages(*shapes.render(4096, seed=1))
test = ArrayImages(*shapes.render(512, seed=2))
batches = training_batches(train, 128, seed=0, first_step=0, last_step=96)
print(f"{len(train)} images of {train.size} pixels, {len(shapes.CLASS_NAMES)} classes")

# %% [markdown]
# ## Views
# The teacher sees a weak view of each image (crop and flip), the student a strong view
# (also colour jitter, grayscale and blur).

# %%
weak, strong = weak_view(32), strong_view(32)


def pixels(view, images, draw):
    """The view of some images as uint8 pixels, without its normalisation."""
    seen = view(images, training=True, seed=[0, draw])
    return np.clip(255 * (seen * view.std + view.mean), 0, 255).astype(np.uint8)


originals = train.images[:4].numpy()
viewed = [pixels(weak, originals, 0), pixels(strong, originals, 1)]
picture = pictures.views_grid(originals, viewed, ["weak", "strong"])
picture.save("runs/tour/views.png")
picture  # noqa: B018, a notebook shows it

# %% [markdown]
# ## Model
# `ReSSL` is a `keras.Model` around the backbone. A run as short as this one gains from
# a warm-up with InfoNCE.

# %%
backbone = build_backbone("resnet10_small", (32, 32, 3), width=8)
model = ReSSL(
    backbone,
    teacher_view=weak,
    student_view=strong,
    queue_size=1024,
    momentum=0.99,
    objective=WarmUp(InfoNCE(0.1), Relation(), steps=72),
)
model.compile(SGD(warmup_cosine(0.12, 96), l2=5e-4))


def nearest_neighbours():
    """Accuracy of the weighted kNN classifier, in per cent."""
    encoder = build_encoder(backbone)
    features = extract(encoder, train) + extract(encoder, test)
    return knn_accuracy(*features)["top1"]


# %% [markdown]
# ## Fit
# kNN accuracy before and after: the classes separate, although no label was used.

# %%
before = nearest_neighbours()
model.fit(batches, epochs=3, steps_per_epoch=32, shuffle=False, verbose=2)
after = nearest_neighbours()
print(f"kNN: {before:.1f} % before, {after:.1f} % after")

# %% [markdown]
# ## Save and load
# The file contains the preprocessing: images in 0-255 to features.

# %%
build_encoder(backbone).save("runs/tour/encoder.keras")
encoder = keras.models.load_model("runs/tour/encoder.keras")
print(f"Features: {encoder(shapes.render(2, seed=3)[0]).shape}")

# %% [markdown]
# ## Fine-tune
# A linear head, all weights trained, with the labels of 256 images.

# %%
few = ArrayImages(*shapes.render(256, seed=4))
results = finetune(encoder, few, test, epochs=20)
print(f"Fine-tuned on {len(few)} labels: {results['top1']:.1f} %")
