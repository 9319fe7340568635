"""Images and other examples: read, split, put on the device, batched. Uses lth.settings.

images.py reads data sets; feed.py gives a training its batches; loaders.py takes data of the user's own (passes.py:
whether they come again as they were); stream.py serves those that do not fit in memory; prints.py tells data from
others. The names that a user needs are here: `lth.data.load_MNIST`.
"""

from lth.data.feed import Feed, crop_and_flip, normalisation, split
from lth.data.images import (
    ARRAYS,
    Images,
    Loader,
    Loaders,
    Source,
    check_sizes,
    load,
    load_MNIST,
    read,
    training_count,
)

__all__ = [
    "ARRAYS",
    "Feed",
    "Images",
    "Loader",
    "Loaders",
    "Source",
    "check_sizes",
    "crop_and_flip",
    "load",
    "load_MNIST",
    "normalisation",
    "read",
    "split",
    "training_count",
]
