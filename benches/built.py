"""What the scripts beside it share."""

import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = ROOT / os.environ.get("CARGO_TARGET_DIR", "target")


class Failed(Exception):
    pass


def built(name):
    """Builds a program of theirs, and gives its path."""
    subprocess.run(
        ["cargo", "build", "--quiet", "--release", "--example", name], cwd=ROOT, check=True
    )
    return TARGET / "release/examples" / name
