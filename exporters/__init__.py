"""Trained networks to what the daemon runs: ONNX, in 8 bits for CPUs, and TensorRT's forms."""


class ExportError(Exception):
    """An export that was refused, in one line."""


class FormError(ExportError):
    """A network that cannot be had in so few bits, in one line without a file's name."""
