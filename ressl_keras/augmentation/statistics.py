"""Mean and standard deviation of the channels that images are normalised with."""

# ImageNet's mean and standard deviation of each channel, on the scale 0-1.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def statistics(channels):
    """Mean and standard deviation of images of 1, 3 or 4 channels, on the scale 0-1.

    Those of gray are ImageNet's too; an alpha channel is brought to about -2 to 2.
    """
    return {
        1: ((0.449,), (0.226,)),
        3: (MEAN, STD),
        4: ((*MEAN, 0.5), (*STD, 0.25)),
    }[channels]
