# %% [markdown]
# # ReSSL, from images to a classifier
#
# A tour in seven cells: drawn shapes, a small network, half a minute on two CPU cores.
# Editors that know percent cells run it like a notebook; so does
# `python -m examples.quickstart`, from the repository's root.

# %%
import os

import keras

from ressl_keras import (
    SGD,
    ReSSL,
    build_backbone,
    data,
    encoders,
    evaluation,
    objectives,
    pictures,
    shapes,
    views,
    warmup_cosine,
)
from ressl_keras.finetuning import finetune
from ressl_keras.probes import knn

keras.utils.set_random_seed(0)
os.makedirs("runs/tour", exist_ok=True)

# %% [markdown]
# ## Data
# Learning needs images only. The labels are for judging.

# %%
train = data.ArrayImages(*shapes.render(4096, seed=1))
test = data.ArrayImages(*shapes.render(512, seed=2))
batches = data.training_batches(train, 128, seed=0, first_step=0, last_step=96)
print(f"{len(train)} images of {train.size} pixels, {len(shapes.CLASS_NAMES)} classes")

# %% [markdown]
# ## Views
# The teacher sees a weak view of an image (crop and flip), the student a strong one
# (colours and blur, too).

# %%
weak, strong = views.weak_view(32), views.strong_view(32)
originals, seen = pictures.first_views(train, weak, [strong], count=4)
picture = pictures.views_grid(originals, seen, ["weak", "strong"])
picture.save("runs/tour/views.png")
picture  # noqa: B018, a notebook shows it

# %% [markdown]
# ## Model
# `ReSSL` is a `keras.Model` around the backbone that is to be kept. A run as short as
# this one gains from a start with InfoNCE.

# %%
backbone = build_backbone("resnet10_small", (32, 32, 3), width=8)
model = ReSSL(
    backbone,
    teacher_view=weak,
    student_view=strong,
    queue_size=1024,
    momentum=0.99,
    objective=objectives.build_objective(
        "ressl", info_nce_temperature=0.1, info_nce_steps=72
    ),
)
model.compile(SGD(warmup_cosine(0.12, 96, 0), l2=5e-4))


def nearest_neighbours():
    """Accuracy of a vote of the nearest training images, in per cent."""
    encoder = encoders.build_encoder(backbone)
    features = evaluation.extract(encoder, train) + evaluation.extract(encoder, test)
    return knn(*features)["top1"]


# %% [markdown]
# ## Fit
# Neighbours before and after: images of one class move together without a label.

# %%
before = nearest_neighbours()
model.fit(batches, epochs=3, steps_per_epoch=32, shuffle=False, verbose=2)
after = nearest_neighbours()
print(f"Nearest neighbours: {before:.1f} % before, {after:.1f} % after")

# %% [markdown]
# ## Save and load
# The file has the preprocessing inside: images in 0-255 to features.

# %%
encoders.build_encoder(backbone).save("runs/tour/encoder.keras")
encoder = keras.models.load_model("runs/tour/encoder.keras")
print(f"Features: {encoder(shapes.render(2, seed=3)[0]).shape}")

# %% [markdown]
# ## Fine-tune
# A linear head, all weights trained, with the labels of 256 images.

# %%
few = data.ArrayImages(*shapes.render(256, seed=4))
results = finetune(encoder, few, test, epochs=5)
print(f"Fine-tuned on {len(few)} labels: {results['top1']:.1f} %")
