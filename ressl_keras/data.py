"""Where images come from and in which order they are read.

The order is a function of (seed, epoch), and the batch of a step a function of
(seed, step): a pipeline can start at any step without reading what came before.
"""

import concurrent.futures
import dataclasses
import itertools
import os

import numpy as np
import tensorflow as tf

from ressl_keras import shapes, views
from ressl_keras.decoding import decode, decode_crops
from ressl_keras.errors import UsageError, near

# Side in pixels of images that are kept in memory decoded: larger ones take more of it
# than their files, and cropping them whole costs more than decoding a window.
_LARGEST_KEPT = 128

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")


class ArrayImages:
    """Images of one size, held in memory.

    Args:
        images: uint8 array [count, height, width, 3].
        labels: integer array [count], or None.
    """

    same_size = True

    def __init__(self, images, labels=None):
        # On the host, so that a GPU is not filled with the data set. A tensor that a
        # dataset captures is passed by reference, not copied into its graph.
        with tf.device("CPU"):
            self.images = tf.constant(images)
        self.labels = None if labels is None else np.asarray(labels)

    def __len__(self):
        return len(self.images)

    @property
    def size(self):
        """Height and width in pixels."""
        return tuple(self.images.shape[1:3])

    @property
    def storage(self):
        """Where the images are, for people."""
        megabytes = self.images.shape.num_elements() / 2**20
        return f"in memory ({megabytes:.0f} MiB)"

    def read(self, index):
        """The image at a place, or the batch at several: uint8, in a graph."""
        return tf.gather(self.images, index)


class EncodedImages:
    """Images of any size, decoded when they are read.

    Args:
        sources: list of file paths, or of the encoded images themselves (bytes).
        labels: integer array [count], or None.
        in_memory: whether `sources` are the images themselves.
    """

    same_size = False

    def __init__(self, sources, labels=None, in_memory=False):
        with tf.device("CPU"):
            self.sources = tf.constant(sources, tf.string)
        self.labels = None if labels is None else np.asarray(labels)
        self.in_memory = in_memory

    def __len__(self):
        return len(self.sources)

    @property
    def storage(self):
        """Where the images are, for people."""
        return "encoded in memory" if self.in_memory else "read from files"

    def encoded(self, index):
        """The bytes of the image at a place, in a graph."""
        source = tf.gather(self.sources, index)
        return source if self.in_memory else tf.io.read_file(source)

    def read(self, index):
        """The decoded image at a place, uint8 [height, width, 3], in a graph."""
        return decode(self.encoded(index))


class StreamedImages:
    """Records of a TFDS split too large for memory, read in shuffled file order.

    Args:
        builder: prepared `tfds.core.DatasetBuilder`.
        split: name of the split.
    """

    same_size = False
    labels = None
    storage = "streamed"
    shuffle_buffer = 16384

    def __init__(self, builder, split):
        self.builder, self.split = builder, split

    def __len__(self):
        return self.builder.info.splits[self.split].num_examples

    def epoch(self, seed, epoch, worker=0, workers=1):
        """Encoded images of one epoch, in an order that (seed, epoch) fixes.

        Several workers share out the files or, where these are too few, the records.
        """
        import tensorflow_datasets as tfds

        files_seed = int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0])
        by_file = self.builder.info.splits[self.split].num_shards >= workers > 1
        records = self.builder.as_dataset(
            split=self.split,
            shuffle_files=True,
            decoders={"image": tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(
                shuffle_seed=files_seed,
                shuffle_reshuffle_each_iteration=False,
                input_context=tf.distribute.InputContext(workers, worker, workers)
                if by_file
                else None,
            ),
        )
        if workers > 1 and not by_file:
            records = records.shard(workers, worker)
        encoded = records.map(lambda record: record["image"])
        return encoded.shuffle(self.shuffle_buffer, seed=files_seed)


@dataclasses.dataclass
class Dataset:
    """What a run reads.

    Attributes:
        name: for people.
        pretrain: images to learn from, without labels.
        train: labelled images that judge the encoder (neighbours, linear probe), or
            None where there are no labels.
        test: labelled images that are never learned from, or None.
        class_names: list of strings; empty where there are no labels.
        skipped: files that could not be read.
    """

    name: str
    pretrain: object
    train: object = None
    test: object = None
    class_names: list = dataclasses.field(default_factory=list)
    skipped: list = dataclasses.field(default_factory=list)

    @property
    def labelled(self):
        return self.train is not None and self.test is not None


def load(name, data_dir=None, download=True, check=True, memory_limit=4 * 2**30):
    """Finds a data set.

    Args:
        name: `shapes`, which is drawn and needs no files; `folder`, a tree of images;
            or the name of a TFDS data set with images.
        data_dir: the folder, or where TFDS keeps its data.
        download: whether TFDS may download.
        check: for `folder`, whether to decode every image once, so that unreadable
            ones are found now and not in the middle of training. Small images of one
            size, of up to 128 pixels, are then kept in memory.
        memory_limit: data sets above this many bytes are streamed, or read from their
            files again and again.

    Returns:
        A `Dataset`.

    Raises:
        UsageError: if the data set is unknown, absent, or has no readable image.
    """
    if name == "shapes":
        train = ArrayImages(*shapes.render(8000, seed=0))
        test = ArrayImages(*shapes.render(2000, seed=1))
        return Dataset("shapes", train, train, test, list(shapes.CLASS_NAMES))
    if name == "folder":
        return _load_folder(data_dir, check, memory_limit)
    return _load_tfds(name, data_dir, download, memory_limit)


def _load_folder(root, check, memory_limit):
    if not root:
        raise UsageError("--dataset=folder needs --data_dir, the folder of images.")
    if not os.path.isdir(root):
        raise UsageError(f"There is no folder {root}.")
    splits = {
        entry.name: entry.path
        for entry in os.scandir(root)
        if entry.is_dir() and entry.name in ("train", "test", "val", "validation")
    }
    held_out = next((n for n in ("test", "val", "validation") if n in splits), None)
    if "train" in splits and held_out:
        train_paths, train_classes = _list_images(splits["train"])
        test_paths, test_classes = _list_images(splits[held_out])
    else:
        train_paths, train_classes = _list_images(root)
        test_paths, test_classes = [], []
    sizes = {}
    if check:
        sizes = _sizes([*train_paths, *test_paths])
        train_paths, train_classes = _readable(train_paths, train_classes, sizes)
        test_paths, test_classes = _readable(test_paths, test_classes, sizes)
    skipped = [path for path, size in sizes.items() if size is None]

    def images(paths, labels=None):
        encoded = EncodedImages(paths, labels)
        size, *others = {sizes.get(path) for path in paths}
        if others or not size or max(size) > _LARGEST_KEPT:
            return encoded
        if len(paths) * size[0] * size[1] * 3 > memory_limit:
            return encoded
        return _kept(encoded, size)

    if not train_paths:
        found = f" ({len(skipped)} files could not be decoded)" if skipped else ""
        raise UsageError(
            f"No readable image under {root}{found}; known are {', '.join(SUFFIXES)}."
        )
    class_names = sorted(set(train_classes))
    dataset = Dataset(f"folder {root}", None, skipped=skipped)
    if len(class_names) < 2:
        dataset.pretrain = images(train_paths)
        return dataset
    index = {class_name: i for i, class_name in enumerate(class_names)}
    if not test_paths:
        # Without a split of its own, every tenth image of the sorted list is kept
        # aside, in training and in evaluation alike.
        places = np.arange(len(train_paths))
        kept, aside = places[places % 10 != 9], places[places % 10 == 9]
        test_paths = [train_paths[i] for i in aside]
        test_classes = [train_classes[i] for i in aside]
        train_paths = [train_paths[i] for i in kept]
        train_classes = [train_classes[i] for i in kept]
    known = [(p, index[c]) for p, c in zip(test_paths, test_classes) if c in index]
    labels = [index[class_name] for class_name in train_classes]
    dataset.pretrain = images(train_paths, labels if known else None)
    if known:
        dataset.class_names = class_names
        dataset.train = dataset.pretrain
        dataset.test = images(*map(list, zip(*known)))
    return dataset


def _list_images(root):
    """Sorted image paths below `root`, and the first folder of each, its class."""
    paths = []
    for folder, _, files in os.walk(root, followlinks=True):
        paths += [
            os.path.join(folder, name)
            for name in files
            if name.lower().endswith(SUFFIXES)
        ]
    paths.sort()
    classes = []
    for path in paths:
        head, *rest = os.path.relpath(path, root).split(os.sep)
        classes.append(head if rest else "")
    return paths, classes


def _sizes(paths):
    """Height and width of each image, or None where it cannot be decoded."""

    def size(path):
        try:
            return tuple(decode(tf.io.read_file(path)).shape[:2])
        except tf.errors.OpError:
            return None

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(paths, pool.map(size, paths)))


def _readable(paths, classes, sizes):
    """The paths that decode, and their classes."""
    good = [sizes[path] is not None for path in paths]
    return [list(itertools.compress(part, good)) for part in (paths, classes)]


def _kept(encoded, size):
    """Images of one size, decoded once and for all."""
    pixels = np.empty([len(encoded), *size, 3], np.uint8)
    places = tf.data.Dataset.range(len(encoded))
    decoded = places.map(encoded.read, tf.data.AUTOTUNE)
    for place, image in enumerate(decoded.as_numpy_iterator()):
        pixels[place] = image
    return ArrayImages(pixels, encoded.labels)


def _load_tfds(name, data_dir, download, memory_limit):
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        known = ["shapes", "folder", *tfds.list_builders()]
        raise UsageError(f"Unknown data set '{name}'. {near(name, known)}") from error
    if not builder.info.splits:
        if not download:
            raise UsageError(
                f"Data set {name} is not under {builder.data_path.parent.parent} and "
                "--nodownload forbids fetching it."
            )
        _download(builder)
    if "image" not in (builder.info.features or {}):
        raise UsageError(f"Data set {name} has no images.")
    splits = builder.info.splits
    train_split = "train" if "train" in splits else next(iter(splits))
    pretrain_split = "unlabelled" if "unlabelled" in splits else train_split

    def images(split):
        return _tfds_images(builder, split, memory_limit)

    train = images(train_split)
    pretrain = train if pretrain_split == train_split else images(pretrain_split)
    dataset = Dataset(name, pretrain)
    for split in ("test", "validation"):
        if split in splits and "label" in builder.info.features:
            test = images(split)
            # Public test splits without labels carry -1.
            if test.labels is not None and test.labels.min() >= 0:
                dataset.train, dataset.test = train, test
                dataset.class_names = list(builder.info.features["label"].names)
                break
    return dataset


def _download(builder):
    """Fetches and prepares a data set.

    Raises:
        UsageError: if it cannot be fetched, naming the address and where a prepared
            copy would be looked for.
    """
    import tensorflow_datasets as tfds

    print(f"Downloading data set {builder.name} to {builder.data_path}.", flush=True)
    try:
        builder.download_and_prepare()
    except (OSError, tfds.download.DownloadError) as error:
        request = getattr(error, "request", None)
        source = f" from {request.url}" if request is not None else ""
        raise UsageError(
            f"Data set {builder.name} could not be downloaded{source} "
            f"({type(error).__name__}). A prepared copy would be looked for in "
            f"{builder.data_path}; --data_dir names another folder."
        ) from error


def _tfds_images(builder, split, memory_limit):
    import tensorflow_datasets as tfds

    info, features = builder.info.splits[split], builder.info.features
    has_labels = "label" in features
    shape = features["image"].shape
    if None not in shape and np.prod(shape) * info.num_examples <= memory_limit:
        images = np.empty([info.num_examples, *shape[:2], 3], np.uint8)
        labels = np.empty([info.num_examples], np.int64)
        start = 0
        for batch in builder.as_dataset(split=split).batch(1000).as_numpy_iterator():
            end = start + len(batch["image"])
            images[start:end] = batch["image"]  # gray images broadcast to RGB
            if has_labels:
                labels[start:end] = batch["label"]
            start = end
        return ArrayImages(images, labels if has_labels else None)
    if info.num_bytes > memory_limit:
        return StreamedImages(builder, split)
    records = builder.as_dataset(
        split=split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    encoded, labels = [], []
    for record in records.as_numpy_iterator():
        encoded.append(record["image"])
        if has_labels:
            labels.append(record["label"])
    return EncodedImages(encoded, labels if has_labels else None, in_memory=True)


def training_batches(
    images,
    batch_size,
    seed,
    first_step,
    last_step,
    size=None,
    worker=0,
    workers=1,
    crops=None,
):
    """Batches of the steps from `first_step` up to, not including, `last_step`.

    An epoch is `len(images) // batch_size` steps; what is left of the order at its
    end is dropped, and the next epoch has another order.

    Args:
        images: `ArrayImages`, `EncodedImages` or `StreamedImages`.
        batch_size: size of the global batch.
        seed: integer seed of the order.
        first_step: step to start at.
        last_step: step to end before.
        size: side of the crops, for images of several sizes.
        worker: number of this worker, from 0.
        workers: how many workers share each global batch, in equal parts.
        crops: sides of the student's crops, for images of several sizes; by default
            one of `size`.

    Returns:
        A `tf.data.Dataset`: of uint8 batches [batch_size / workers, height, width, 3]
        where the images have one size, so that the views can be made on the device;
        else of dicts of two such batches, `teacher` and `student`, each a random
        resized crop and flip of its own, since only crops can be batched; with several
        `crops`, `student` is a tuple of batches.
    """
    share, steps = batch_size // workers, (first_step, last_step)
    indices = shuffled_indices(len(images), batch_size, seed, *steps, worker, workers)
    if images.same_size:
        return indices.map(images.read, tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    moves = views.crops_and_flips(size, crops)

    def draws(step):
        step_seed = tf.stack([tf.constant(seed, tf.int64), step])
        seeds = [
            tf.random.experimental.stateless_fold_in(
                step_seed, views.fold(view, while_reading=True)
            )
            for view in range(len(moves))
        ]
        return tuple(
            move.draw(view_seed, share, first=worker * share)
            for move, view_seed in zip(moves, seeds)
        )

    def crop(encoded, draws):
        teacher, *student = read_crops(encoded, moves, draws)
        student = student[0] if len(student) == 1 else tuple(student)
        return {"teacher": teacher, "student": student}

    if isinstance(images, StreamedImages):
        per_epoch = len(images) // batch_size * share
        encoded = _streamed(images, seed, per_epoch, share, *steps, worker, workers)
    else:
        encoded = indices.unbatch().map(images.encoded, tf.data.AUTOTUNE)
    drawn = tf.data.Dataset.range(*steps).map(draws).unbatch()
    examples = tf.data.Dataset.zip(encoded, drawn).map(crop, tf.data.AUTOTUNE)
    batches = examples.batch(share, drop_remainder=True)
    return batches.prefetch(tf.data.AUTOTUNE)


class Waiting:
    """Counts the seconds for which a consumer waits for its batches."""

    def __init__(self):
        with tf.device("CPU"):
            self._seconds = tf.Variable(0.0, trainable=False, dtype=tf.float64)

    @staticmethod
    def possible():
        """Whether there is a clock: not where TensorFlow computes deterministically."""
        try:
            tf.timestamp()
        except tf.errors.FailedPreconditionError:
            return False
        return True

    @property
    def seconds(self):
        """All of them so far."""
        return float(self._seconds.numpy())

    def watch(self, batches):
        """The same batches, each between two looks at the clock.

        Args:
            batches: `tf.data.Dataset`, with a prefetch at its end as a rule.

        Returns:
            A `tf.data.Dataset` for one consumer that asks when it needs a batch: ahead
            of time, as on several devices, the time it waits would mean little.
        """

        def count(asked, batch, given):
            self._seconds.assign_add(given - asked)
            return batch

        clock = tf.data.Dataset.range(tf.int64.max).map(lambda _: tf.timestamp())
        # The three are asked one after the other.
        watched = tf.data.Dataset.zip(clock, batches, clock).map(count)
        options = tf.data.Options()
        options.experimental_optimization.inject_prefetch = False
        return watched.with_options(options)


def shuffled_indices(
    count, batch_size, seed, first_step, last_step, worker=0, workers=1
):
    """Which of `count` examples each step takes: a dataset of int64 vectors.

    Args and order as in `training_batches`.
    """
    steps_per_epoch, share = count // batch_size, batch_size // workers
    places = worker * share + tf.range(share, dtype=tf.int64)

    def indices(step):
        first = step % steps_per_epoch * batch_size
        return _shuffled(first + places, seed, step // steps_per_epoch, count)

    return tf.data.Dataset.range(first_step, last_step).map(indices)


def _shuffled(place, seed, epoch, count):
    """Where the example at a place of an epoch is found; no permutation is stored."""
    key = tf.random.stateless_uniform(
        [3],
        tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)]),
        minval=None,
        maxval=None,
        dtype=tf.int32,
        alg="philox",
    )
    # tf.random.experimental.index_shuffle is this op with 4 rounds and the plain seed:
    # orders of neighbouring epochs then correlate at up to 0.7. From 8 rounds on they
    # look independent.
    return tf.raw_ops.RandomIndexShuffle(
        index=place, seed=key, max_index=tf.cast(count - 1, tf.int64), rounds=12
    )


def read_crops(encoded, moves, draws):
    """Crops and flips of one encoded image, in a graph.

    Args:
        encoded: scalar string tensor, the bytes of the image.
        moves: list of `views.RandomResizedCropAndFlip`.
        draws: for each, the row of its `draw` that belongs to the image.

    Returns:
        For each, a uint8 tensor [size, size, 3].
    """
    pairs = [(move, draw[tf.newaxis]) for move, draw in zip(moves, draws)]

    def boxes(height, width):
        found = [move.boxes(draw, height, width) for move, draw in pairs]
        return tf.concat(found, axis=0)

    flips = tf.concat([move.flips(draw) for move, draw in pairs], axis=0)
    return decode_crops(encoded, boxes, [move.size for move in moves], flips)


def _streamed(images, seed, per_epoch, share, first_step, last_step, worker, workers):
    """Encoded images of the steps; of those before them nothing is decoded."""
    first, last = first_step * share, last_step * share
    encoded = None
    for epoch in range(first // per_epoch, -(-last // per_epoch)):
        start = epoch * per_epoch
        # Workers' files can differ in length; the shorter begin again.
        source = images.epoch(seed, epoch, worker, workers).repeat()
        part = source.take(min(per_epoch, last - start)).skip(max(first - start, 0))
        encoded = part if encoded is None else encoded.concatenate(part)
    return encoded


def evaluation_batches(images, size, batch_size=256, count=None):
    """Images in their order, each brought to size by `central_square`.

    Args:
        images: `ArrayImages` or `EncodedImages`.
        size: side of the result in pixels.
        batch_size: images a batch; the last may be smaller.
        count: take only so many, evenly spread over the set; None takes all.

    Returns:
        A `tf.data.Dataset` of batches [batch, size, size, 3] in 0-255: uint8 of images
        in memory that have the size, else float32.
    """

    def read(index):
        image = images.read(index)
        return image if fits else central_square(image, size)

    fits = images.same_size and images.size == (size, size)
    dataset = tf.data.Dataset.from_tensor_slices(evaluation_indices(images, count))
    dataset = dataset.map(read, tf.data.AUTOTUNE)
    return dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE)


def evaluation_indices(images, count=None):
    """Which images `evaluation_batches` takes, int64 array."""
    if count is None or count >= len(images):
        return np.arange(len(images))
    return np.linspace(0, len(images), count, endpoint=False).astype(np.int64)


def central_square(image, size):
    """The middle of an image, at a given size.

    The pixels of an image that has the size already stay as they are. Of others the
    shorter side becomes 8/7 of it, bilinear with antialiasing, before the cut: 256 for
    224 as usual.

    Args:
        image: uint8 tensor [height, width, 3].
        size: side of the result in pixels.

    Returns:
        float32 tensor [size, size, 3] in 0-255.
    """
    image = tf.cast(image, tf.float32)

    def resized():
        pixels = tf.cast(shape, tf.float32)
        shorter = round(size * 8 / 7)
        whole = tf.round(pixels * (shorter / tf.reduce_min(pixels)))
        # `tf.image.resize` and a cut in one: of an image of extreme aspect, the whole
        # would be large.
        square = tf.raw_ops.ScaleAndTranslate(
            images=image[tf.newaxis],
            size=[size, size],
            scale=whole / pixels,
            translation=-tf.floor((whole - size) / 2),
            kernel_type="triangle",
            antialias=True,
        )[0]
        return tf.clip_by_value(square, 0, 255)

    shape = tf.shape(image)[:2]
    as_it_is = tf.reduce_all(shape == size)
    return tf.ensure_shape(tf.cond(as_it_is, lambda: image, resized), [size, size, 3])
