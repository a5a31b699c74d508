"""An id or a path in, a folder on this disk out. Importing it is cheap: client libraries load when they are asked."""

from swiftune.hub.find import find_dataset, find_model
from swiftune.hub.push import push_folder

__all__ = ["find_dataset", "find_model", "push_folder"]
