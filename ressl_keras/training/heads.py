"""The heads behind the backbone, as the settings describe them."""


def head_widths(config, features):
    """Widths of the layers of the projector and of the predictor.

    Args:
        config: `Config`.
        features: number of the backbone's features.

    Returns:
        Two tuples of input, hidden and output width; the second is None without a
        predictor.
    """
    dim, hidden = config.embedding_dim, config.predictor_dim
    return (features, config.hidden_dim, dim), (dim, hidden, dim) if hidden else None
