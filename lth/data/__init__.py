"""Images and other examples: read, split, put on the device, batched. Uses lth.settings and lth.rng.

images.py has images in memory and what a training sees of them; sets.py reads and writes data sets; loaders.py takes
data of the user's own. The names that a user needs are here: `lth.data.load_MNIST`.
"""

from lth.data.images import Images
from lth.data.sets import Loader, Loaders, check_sizes, load, load_MNIST, read, to_npz, training_count

__all__ = ["Images", "Loader", "Loaders", "check_sizes", "load", "load_MNIST", "read", "to_npz", "training_count"]
