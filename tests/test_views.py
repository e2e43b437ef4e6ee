"""The views against torchvision's golden files, Pillow and NumPy."""

import colorsys
import itertools
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ressl_keras import views
from ressl_keras.augmentation import bundle, image_ops
from ressl_keras.augmentations import Augmentation


def error(result, reference):
    """Absolute differences, in steps of 1/255, of images in 0-1 from pixels."""
    return np.abs(np.asarray(result) * 255 - reference)


def scaled(pixels):
    """Images in 0-1."""
    return np.asarray(pixels, np.float32) / 255


@pytest.fixture
def photometric(golden):
    return golden("photometric")


@pytest.fixture
def images(random):
    """Smooth colour images, so that blur and crops have something to show."""
    coarse = random.uniform(0, 255, [6, 4, 5, 3]).astype(np.float32)
    fine = tf.image.resize(coarse, [32, 40], "bicubic")
    return tf.cast(tf.clip_by_value(fine, 0, 255), tf.uint8)


# Figures reached: maximum 0.90, 1.17, 1.16.
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_blends_match_torchvision_on_every_pixel(photometric, name):
    adjust = getattr(views, f"adjust_{name}")
    pixels = scaled(photometric["images"])
    for factor, reference in zip(photometric[f"{name}_factors"], photometric[name]):
        assert error(adjust(pixels, factor), reference).max() <= 1.5


# Figures reached: mean 0.29, 99th percentile 2.86.
def test_hue_matches_torchvision(photometric):
    pixels = scaled(photometric["images"])
    for factor, reference in zip(photometric["hue_factors"], photometric["hue"]):
        errors = error(views.adjust_hue(pixels, factor), reference)
        assert errors.mean() <= 2 and np.percentile(errors, 99) <= 6


# Figure reached: maximum 0.52.
def test_grayscale_matches_torchvision_on_every_pixel(photometric):
    gray = views.rgb_to_grayscale(scaled(photometric["images"]))
    assert error(gray, photometric["grayscale"]).max() <= 1.5


# Figures reached: mean 0.00, 1.45, 0.75, 0.65 (Pillow's blur approximates a Gaussian).
def test_blur_matches_pillow(photometric):
    pixels = scaled(photometric["images"])
    for sigma, reference in zip(photometric["blur_sigmas"], photometric["blur"]):
        assert error(views.gaussian_blur(pixels, sigma), reference).mean() <= 3


# Figures reached: mean 0.00, 0.31, 0.28.
def test_resized_crop_matches_torchvision(photometric):
    pixels = scaled(photometric["images"])
    boxes = photometric["crop_boxes_top_left_height_width"]
    for box, reference in zip(boxes, photometric["resized_crop"]):
        assert error(views.resized_crop(pixels, box, 32), reference).mean() <= 3


def test_shrinking_crop_is_antialiased_as_in_pillow(images):
    top, left, height, width = 3, 5, 24, 30
    result = views.resized_crop(scaled(images), [top, left, height, width], 9)
    for image, ours in zip(images.numpy(), result):
        cut = Image.fromarray(image).crop((left, top, left + width, top + height))
        reference = cut.resize((9, 9), Image.BILINEAR)
        assert error(ours, np.asarray(reference)).max() <= 1.5


def test_factors_apply_image_by_image(images):
    pixels = scaled(images)
    factors = tf.constant([0.5, 1, 1.5, 0.7, 1, 1.3])
    for name in ("adjust_brightness", "adjust_contrast", "adjust_hue", "gaussian_blur"):
        function = getattr(views, name)
        scale = 0.1 if name == "adjust_hue" else 1
        together = function(pixels, factors * scale)
        for i, factor in enumerate(factors):
            alone = function(pixels[i : i + 1], factor * scale)[0]
            np.testing.assert_allclose(together[i], alone, atol=1e-5)


@pytest.mark.parametrize("shift", [-0.5, -0.37, -0.1, 0.08, 0.25, 0.5])
def test_hue_turns_as_in_hsv(shift, random):
    pixels = random.uniform(size=[500, 3])
    pixels[:60] = pixels[:60, :1]  # grays have no hue
    pixels[60:120, 1] = pixels[60:120, 0]  # two channels alike
    pixels[120:180, 2] = pixels[120:180, 1]
    result = views.adjust_hue(pixels.astype(np.float32)[:, None, None], shift)
    for pixel, ours in zip(pixels, result[:, 0, 0]):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        reference = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)
        np.testing.assert_allclose(ours, reference, atol=1e-5)


@pytest.mark.parametrize("sigma", [0, 0.3, 1, 2])
def test_blur_weighs_pixels_by_a_gaussian(sigma, random):
    """Its mass on each pixel, counted by a fine sum; the edge pixel is repeated."""
    line = random.uniform(size=21).astype(np.float32)
    fine = (np.arange(-10.5, 10.5, 0.001) + 0.0005)[:, None]
    mass = np.exp(-0.5 * (fine / max(sigma, 1e-3)) ** 2).reshape(21, -1).sum(1)
    padded = np.pad(line, 10, mode="edge")
    expected = np.convolve(padded, mass / mass.sum(), mode="valid")
    across = tf.broadcast_to(line[:, None], [1, 5, 21, 3])
    along = tf.transpose(across, [0, 2, 1, 3])
    for result in (
        views.gaussian_blur(across, sigma)[0, 2, :, 1],
        views.gaussian_blur(along, sigma)[0, :, 2, 1],
    ):
        np.testing.assert_allclose(result, expected, atol=1e-4)


@pytest.mark.long
def test_views_compiled_with_the_step_are_the_same_but_for_the_draws(images):
    """XLA draws other numbers, so the parameters are fixed here."""
    pixels = scaled(images)
    factors = tf.constant([0.5, 1, 1.5, 0.7, 1, 1.3])

    def all_of_them(pixels):
        pixels = views.resized_crop(pixels, [3, 5, 24, 30], 16, factors > 1)
        pixels = views.adjust_contrast(pixels, factors)
        pixels = views.adjust_hue(pixels, factors / 10)
        return views.gaussian_blur(pixels, factors)

    compiled = tf.function(all_of_them, jit_compile=True)(pixels)
    np.testing.assert_allclose(compiled, all_of_them(pixels), atol=1e-5)


def test_sampled_boxes_are_distributed_as_torchvisions(golden):
    reference = golden("random_resized_crop")
    height, width = reference["image_height_width"]
    uniform = tf.random.stateless_uniform([40000, 22], [1, 2])
    boxes = image_ops.sample_crop_boxes(uniform, height, width).numpy()
    area = boxes[:, 2] * boxes[:, 3] / (height * width)
    aspect = np.log(boxes[:, 3] / boxes[:, 2])
    levels = reference["quantiles"]
    np.testing.assert_allclose(
        np.quantile(area, levels), reference["area_fraction"], atol=0.01
    )
    np.testing.assert_allclose(
        np.quantile(aspect, levels), reference["log_aspect"], atol=0.01
    )
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= [height, width]).all()
    tops = reference["top_left_height_width"][:, 0] / height
    assert abs(np.mean(boxes[:, 0] / height) - tops.mean()) < 0.01


def test_boxes_of_an_image_too_narrow_for_the_ratio_are_central():
    boxes = image_ops.sample_crop_boxes(
        tf.random.stateless_uniform([8, 22], [0, 0]), 10, 90
    )
    np.testing.assert_array_equal(boxes, [[0, 39, 10, 13]] * 8)


def test_color_jitter_applies_its_operations_in_an_order_of_each_images_own(images):
    """NumPy must find each result in some order, and no order explains them all."""
    jitter = views.RandomColorJitter(hue=0, probability=1)
    seed = tf.constant([3, 4])
    uniform = tf.random.stateless_uniform([6, 9], seed, alg="philox").numpy()
    factors = 1 + 0.4 * (2 * uniform[:, 1:4] - 1)
    pixels = images.numpy() / 255
    results = image_ops.to_pixels(jitter(image_ops.to_planes(images), seed=seed))

    def luma(image):
        return image @ [[0.2989], [0.5870], [0.1140]]

    others = (lambda image: 0, lambda image: luma(image).mean(), luma)
    explaining_all = set(itertools.permutations(range(3)))
    for image, result, factor in zip(pixels, results, factors):
        found = set()
        for order in itertools.permutations(range(3)):
            reference = image
            for kind in order:
                blend = factor[kind] * reference
                blend = blend + (1 - factor[kind]) * others[kind](reference)
                reference = np.clip(blend, 0, 1)
            if np.abs(result - reference).max() < 1e-4:
                found.add(order)
        assert found
        explaining_all &= found
    assert not explaining_all


def in_turn(operations, images, seed, mean, std):
    """What operations make of a batch, each of all images at once."""
    planes = image_ops.to_planes(images)
    for index, operation in enumerate(operations):
        fold = tf.random.experimental.stateless_fold_in(seed, index)
        planes = tf.ensure_shape(planes, [None, len(mean), None, None])
        planes = operation(planes, seed=fold)
    return image_ops.to_pixels(planes, mean, std)


@pytest.mark.parametrize(
    "channels, cropped",
    [
        (3, True),
        (1, False),
        pytest.param(1, True, marks=pytest.mark.long),
        pytest.param(3, False, marks=pytest.mark.long),
        pytest.param(4, True, marks=pytest.mark.long),
        pytest.param(4, False, marks=pytest.mark.long),
    ],
)
def test_large_images_one_after_the_other_are_those_of_the_whole_batch(
    channels, cropped, images, random
):
    pixels = tf.image.resize(images, [64, 64])
    alpha = random.uniform(0, 255, [6, 64, 64, 1])
    pixels = tf.concat([pixels, alpha], -1)[..., :channels]
    statistics = (0.4,) * channels, (0.2,) * channels
    crop = [views.RandomResizedCropAndFlip(64)] if cropped else []
    changes = Augmentation(solarize=0.5, vertical_flip=0.5, turn=0.5)
    view = views.View([*crop, *views.photometric_operations(changes)], *statistics)
    seed = tf.constant([5, 6])
    one_by_one = view(pixels, training=True, seed=seed)
    together = in_turn(view.operations, pixels, seed, *statistics)
    np.testing.assert_allclose(one_by_one, together, atol=1e-4)


def test_large_views_know_their_shape_after_views_of_other_numbers(images):
    """As in a step that is traced after a preview."""
    crop = views.RandomResizedCropAndFlip(64)
    view = views.View([crop, *views.photometric_operations()])
    for count in (2, 3):
        view(images[:count], training=True)
    make = tf.function(lambda images: view(images, training=True))
    traced = make.get_concrete_function(tf.TensorSpec([4, 80, 80, 3]))
    assert traced.output_shapes == (4, 64, 64, 3)


def test_other_draws_compile_nothing_anew(random):
    """A compilation takes a second, in which ten batches can be made."""
    changes = Augmentation(solarize=0.5, turn=0.5)
    operations = views.photometric_operations(changes)
    functions = tuple(each.operation_on_one for each in operations)
    finished = image_ops.one_by_one.__wrapped__(functions, 3, True)
    images = tf.constant(random.uniform(0, 1, [4, 3, 32, 32]), tf.float32)

    def seconds(seed):
        start = time.perf_counter()
        draws = tuple(each.draw([seed, 0], 4, 0) for each in operations)
        finished(images, draws, (0.4,) * 3, (0.2,) * 3)
        return time.perf_counter() - start

    first = seconds(0)
    assert sum(seconds(seed) for seed in range(1, 11)) < first


def test_a_class_of_ones_own_may_replace_the_call(images):
    class Black(views.RandomGrayscale):
        def call(self, planes, seed, first=0):
            return tf.zeros_like(planes)

    view = views.View([views.RandomResizedCropAndFlip(64), Black()], std=(1, 1, 1))
    found = view(images, training=True, seed=tf.constant([5, 6]))
    np.testing.assert_allclose(found + views.MEAN, tf.zeros([6, 64, 64, 3]), atol=1e-6)


def test_with_a_gpu_large_images_are_made_together(images, monkeypatch):
    pixels = tf.image.resize(images, [64, 64])
    view, seed = views.View(views.photometric_operations()), tf.constant([5, 6])
    expected = in_turn(view.operations, pixels, seed, views.MEAN, views.STD)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: [kind])
    monkeypatch.setattr(image_ops, "one_by_one", None)
    found = view(pixels, training=True, seed=seed)
    np.testing.assert_array_equal(found, expected)


def test_spared_images_keep_their_pixels(images):
    source = image_ops.to_planes(images[:, :, :32])
    for layer in (
        views.RandomColorJitter(probability=0),
        views.RandomGrayscale(probability=0),
        views.RandomGaussianBlur(probability=0),
        views.RandomResizedCropAndFlip(32, scale=(1, 1), ratio=(1, 1), flip=0),
    ):
        np.testing.assert_allclose(layer(source, seed=[0, 1]), source, atol=1e-5)


@pytest.mark.parametrize(
    "layer, share",
    [
        (views.RandomColorJitter(), 0.8),
        (views.RandomGrayscale(), 0.2),
        (views.RandomGaussianBlur(), 0.5),
    ],
)
def test_each_image_is_changed_with_the_stated_probability(layer, share, images):
    planes = image_ops.to_planes(tf.repeat(images[:1, :8, :8], 4000, axis=0))
    changed = tf.reduce_max(abs(layer(planes, seed=[0, 1]) - planes), [1, 2, 3]) > 1e-4
    assert abs(np.mean(changed) - share) < 0.03


def test_half_of_the_views_are_mirrored(images):
    layer = views.RandomResizedCropAndFlip(32, scale=(1, 1), ratio=(1, 1))
    planes = image_ops.to_planes(tf.repeat(images[:1, :, :32], 1000, axis=0))
    result = layer(planes, seed=[0, 1])
    same = tf.reduce_max(abs(result - planes), [1, 2, 3]) < 1e-5
    mirrored = tf.reduce_max(abs(result[..., ::-1] - planes), [1, 2, 3]) < 1e-5
    assert np.all(same | mirrored) and abs(np.mean(mirrored) - 0.5) < 0.05


@pytest.mark.parametrize("make", [views.weak_view, views.strong_view])
def test_a_view_is_a_normalised_square_and_repeats_with_its_seed(make, images):
    view = make(24)
    one = view(images, training=True, seed=[5, 6])
    assert one.shape == (6, 24, 24, 3) and one.dtype == tf.float32
    assert view.compute_output_shape(images.shape) == (6, 24, 24, 3)
    np.testing.assert_array_equal(one, view(images, training=True, seed=[5, 6]))
    other = view(images, training=True, seed=[5, 7])
    assert np.all(tf.reduce_max(abs(one - other), [1, 2, 3]) > 1e-3)
    pixels = one * views.STD + views.MEAN
    assert np.min(pixels) >= -1e-5 and np.max(pixels) <= 1 + 1e-5


def test_the_first_call_runs_each_operation_once(images):
    calls = []

    class Counting(keras.layers.Layer):
        def call(self, planes, seed, first=0):
            calls.append(seed)
            return planes

    views.View([Counting()])(images, training=True, seed=tf.constant([1, 2]))
    assert len(calls) == 1


def test_without_a_seed_every_call_draws_anew(images):
    view = views.strong_view(24)
    one, other = view(images, training=True), view(images, training=True)
    assert not np.allclose(one, other)


def test_outside_training_an_image_is_only_normalised(images):
    expected = (images.numpy() / 255 - views.MEAN) / views.STD
    np.testing.assert_allclose(views.strong_view(24)(images), expected, atol=1e-5)


@pytest.mark.parametrize(
    "make, size",
    [(views.weak_view, 24), (views.strong_view, 24), (views.strong_view, 64)],
)
@pytest.mark.long
def test_a_view_inside_tf_data_equals_the_view_on_the_device(make, size, images):
    view = make(size)
    dataset = tf.data.Dataset.from_tensors(images).map(
        lambda batch: view(batch, training=True, seed=[5, 6])
    )
    inside = next(iter(dataset))
    outside = view(images, training=True, seed=[5, 6])
    np.testing.assert_allclose(inside, outside, atol=1e-5)


@pytest.mark.parametrize("size", [24, pytest.param(64, marks=pytest.mark.long)])
def test_draws_depend_on_the_place_in_the_global_batch_alone(size, images):
    """Two replicas with half of the batch each see what one sees."""
    view = views.strong_view(size)
    whole = view(images, training=True, seed=[5, 6])
    halves = [
        view(images[:3], training=True, seed=[5, 6]),
        view(images[3:], training=True, seed=[5, 6], first=3),
    ]
    np.testing.assert_allclose(whole, tf.concat(halves, 0), atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_view_honours_the_dtype_policy_and_works_in_float32(policy, images):
    exact = views.strong_view(24)(images, training=True, seed=[5, 6])
    view = views.strong_view(24, dtype=policy)
    result = view(images, training=True, seed=[5, 6])
    assert result.dtype == policy.removeprefix("mixed_")
    np.testing.assert_array_equal(result, tf.cast(exact, result.dtype))


def test_a_view_survives_serialisation(images):
    view = views.strong_view(24, scale=(0.5, 0.9), mean=(0.5, 0.5, 0.5))
    config = keras.saving.serialize_keras_object(view)
    again = keras.saving.deserialize_keras_object(config)
    np.testing.assert_array_equal(
        view(images, training=True, seed=[5, 6]),
        again(images, training=True, seed=[5, 6]),
    )


def test_areas_of_the_crops_are_the_papers():
    scales = [views.crop_scale(size, 224) for size in (224, 192, 160, 128, 96)]
    assert scales == [
        (0.2, 1.0),
        (0.172, 0.86),
        (0.143, 0.715),
        (0.114, 0.571),
        (0.086, 0.429),
    ]


def test_other_crops_are_given_areas_in_proportion():
    for size, image_size in [(32, 32), (24, 32), (48, 64), (10, 96), (64, 32)]:
        low, high = views.crop_scale(size, image_size)
        assert high == pytest.approx(min(size / image_size, 1), abs=0.005)
        assert low == pytest.approx(high / 5, abs=0.001)


def test_no_two_parts_of_views_draw_the_same():
    folds = [bundle._fold(v, reading) for v in range(9) for reading in (False, True)]
    assert len(set(folds)) == len(folds)


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("adjust_brightness", [0.5]),
        ("adjust_contrast", [1.5]),
        ("adjust_saturation", [0.3]),
        ("adjust_hue", [0.2]),
        ("rgb_to_grayscale", []),
        ("gaussian_blur", [1.0]),
        ("resized_crop", [[1, 2, 20, 30], (12, 10)]),
    ],
)
def test_an_operation_on_images_is_the_one_on_planes(name, arguments, images):
    result = getattr(views, name)(scaled(images), *arguments)
    planes = getattr(image_ops, name)(image_ops.to_planes(images), *arguments)
    assert result.shape[0] == 6 and result.shape[-1] == 3
    np.testing.assert_allclose(result, tf.transpose(planes, [0, 2, 3, 1]), atol=1e-6)


def test_float_images_in_0_1_are_refused(random):
    view = views.strong_view(8)
    pixels = random.uniform(0, 255, [4, 8, 8, 3]).astype(np.float32)
    view(pixels, training=True)
    view(np.zeros_like(pixels), training=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Multiply them by 255"):
        view(pixels / 255, training=True)
