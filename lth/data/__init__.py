"""Images and other examples: read, split, put on the device, batched. Uses lth.settings.

images.py has images in memory and what a training sees of them; sets.py reads and writes data sets, pictures.py those
that are pictures; loaders.py takes data of the user's own, stream.py serves those that are not kept in memory;
prints.py has fingerprints of data. The names that a user needs are here: `lth.data.load_MNIST`.
"""

from lth.data.images import Feed, Images, crop_and_flip, normalisation, split
from lth.data.sets import Loader, Loaders, check_sizes, load, load_MNIST, read, to_npz, training_count

__all__ = [
    "Feed",
    "Images",
    "Loader",
    "Loaders",
    "check_sizes",
    "crop_and_flip",
    "load",
    "load_MNIST",
    "normalisation",
    "read",
    "split",
    "to_npz",
    "training_count",
]
