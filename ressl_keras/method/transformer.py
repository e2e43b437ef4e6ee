"""Vision transformers of Keras' own layers, so that their files load without others."""

import keras

from ressl_keras.errors import UsageError

# Layers, hidden dimension and heads (arXiv 2010.11929, 2012.12877). The micro one is
# for CPUs: as many weights and operations as a resnet10_small of width 16.
TRANSFORMERS = {
    "vit_micro": (6, 64, 2),
    "vit_tiny": (12, 192, 3),
    "vit_small": (12, 384, 6),
}


def vision_transformer(name, input_shape, patch_size=None):
    """A vision transformer without class token, whose features are the tokens' mean.

    KerasHub's has layers that their own configuration does not make again (0.32), so
    the teacher cannot be a copy and a file cannot be loaded.

    Args:
        name: one of `TRANSFORMERS`.
        input_shape: (side, side, channels).
        patch_size: side of the patches in pixels; None takes the largest of 4, 8 and 16
            that makes eight or more a side.

    Returns:
        A functional `keras.Model` from images to features [batch, hidden dim].

    Raises:
        UsageError: if the images are no squares of one size, or patches do not fill
            them.
    """
    height, width, channels = input_shape
    if height is None or height != width:
        raise UsageError(f"{name} takes squares of one size, without other --crops.")
    if patch_size is None:
        patch_size = next((p for p in (16, 8) if height >= 8 * p), 4)
    if height % patch_size:
        raise UsageError(
            f"{name}: patches of {patch_size} pixels do not fill images of {height}; "
            "give another --patch_size."
        )
    side, (layers, dim, heads) = height // patch_size, TRANSFORMERS[name]
    images = keras.Input(input_shape)
    x = keras.layers.Reshape([side, patch_size, side, patch_size * channels])(images)
    x = keras.layers.Permute([1, 3, 2, 4])(x)
    x = keras.layers.Reshape([side * side, patch_size * patch_size * channels])(x)
    # The projection's bias differs from token to token: the position embedding.
    x = keras.layers.EinsumDense(
        "btp,pd->btd",
        output_shape=(side * side, dim),
        bias_axes="td",
        bias_initializer=keras.initializers.TruncatedNormal(stddev=0.02),
        name="patch_embedding",
    )(x)
    for index in range(layers):
        x = _block(x, dim, heads, f"block{index + 1}")
    x = _normalized(x, "norm")
    return keras.Model(images, keras.layers.GlobalAveragePooling1D()(x), name=name)


def _block(x, dim, heads, name):
    """Attention and an MLP, each behind a norm and beside a shortcut."""
    attention = keras.layers.MultiHeadAttention(
        heads, dim // heads, name=f"{name}_attention"
    )
    normalized = _normalized(x, f"{name}_norm1")
    x = keras.layers.Add()([x, attention(normalized, normalized)])
    hidden = keras.layers.Dense(4 * dim, "gelu", name=f"{name}_dense1")
    output = keras.layers.Dense(dim, name=f"{name}_dense2")
    return keras.layers.Add()([x, output(hidden(_normalized(x, f"{name}_norm2")))])


def _normalized(x, name):
    return keras.layers.LayerNormalization(epsilon=1e-6, name=name)(x)
