"""Metadata and tool settings are in pyproject.toml. Here are the kernels of generation, which are compiled if possible.

Where that fails (no compiler, another processor), generation does the same with PyTorch's operators, more slowly.
"""

import platform
import sys

from setuptools import Extension, setup

NATIVE = "cktk/generation/operators/native"
KERNELS = Extension(
    "cktk.generation.operators._kernels",
    [f"{NATIVE}/kernels.cpp"],
    depends=[f"{NATIVE}/{name}.h" for name in ("vectors", "products", "logits", "attention")],
    language="c++",
    # The library asks the processor before it uses any of these.
    extra_compile_args=[
        *("-O3", "-std=c++17", "-fopenmp", "-fvisibility=hidden", "-g0"),
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma", "-mamx-tile", "-mamx-int8"),
        # GCC warns of variables that its own headers leave open on purpose.
        *("-Wno-uninitialized", "-Wno-maybe-uninitialized"),
    ],
    extra_link_args=["-fopenmp"],
    optional=True,
)

setup(ext_modules=[KERNELS] if sys.platform == "linux" and platform.machine() == "x86_64" else [])
