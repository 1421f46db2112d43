"""The console scripts: thin faces, each a ``main(argv) -> int``."""
