"""What the scripts beside it share: programs to run, and files of results."""

import json
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = ROOT / os.environ.get("CARGO_TARGET_DIR", "target")
RESULTS = TARGET / "bench"


class Failed(Exception):
    pass


def build(*what):
    """Builds a program of theirs."""
    subprocess.run(["cargo", "build", "--quiet", "--release", *what], cwd=ROOT, check=True)


def write_results(name, lines):
    """As the benches in Rust write theirs: an object a line, over those of the run before."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    (RESULTS / f"{name}.jsonl").write_text(text)


def read_results(name):
    """What was written last, or `None` if nothing was."""
    file = RESULTS / f"{name}.jsonl"
    if not file.exists():
        return None
    try:
        return [json.loads(line) for line in file.read_text().splitlines()]
    except ValueError as error:
        raise Failed(f"{file}: {error}")
