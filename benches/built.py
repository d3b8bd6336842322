"""What the scripts beside it share."""

import json
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Failed(Exception):
    pass


def built(bench):
    """Builds a bench, and gives the path of its binary."""
    cargo = subprocess.run(
        ["cargo", "build", "--quiet", "--release", "--bench", bench, "--message-format=json"],
        cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE,
    )
    for line in cargo.stdout.splitlines():
        told = json.loads(line)
        if told.get("target", {}).get("name") == bench and told.get("executable"):
            return told["executable"]
    raise Failed(f"cargo does not say where the bench {bench} is")
