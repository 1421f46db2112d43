"""Packages that only some formats need, and what to say where they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from cktk.errors import ConfigError

#: What pip is told, by package.
EXTRAS = {"ctranslate2": "ctranslate2", "onnx": "onnx", "onnxruntime": "onnx", "onnxscript": "onnx"}


def load(package: str, module: str | None = None) -> Any:
    """The ``module`` of an optional ``package`` (default: itself).

    Raises `ConfigError` with the pip command where the package is not installed or cannot be imported.
    """
    try:
        return importlib.import_module(module or package)
    except ImportError as error:
        extra = f"pip install 'cktk[{EXTRAS[package]}]'"
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == package:
            raise ConfigError(f"{package} is not installed; install it with: {extra}") from error
        raise ConfigError(f"{package} cannot be imported ({error}); install it again with: {extra}") from error
