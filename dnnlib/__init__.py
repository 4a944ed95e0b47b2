"""Plain helpers without tensors and without GANs: configuration dictionaries, user errors, files, downloads, logging, CLI parsing."""

from dnnlib import util
from dnnlib.easydict import EasyDict
from dnnlib.errors import UserError
from dnnlib.files import append_text, atomic_path, atomic_write_bytes, atomic_write_text, make_folder

__all__ = ["EasyDict", "UserError", "append_text", "atomic_path", "atomic_write_bytes", "atomic_write_text", "make_folder", "util"]
