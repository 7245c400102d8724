#!/usr/bin/env python3
"""Draw the Mandelbrot set on the cluster, a tile per task.

Examples:
  mandelbrot.py --out picture.png
  mandelbrot.py --out big.png --width 3840 --height 2160 --iterations 1000 --tile 128
  mandelbrot.py --out spiral.png --view -0.7436 0.1318 0.003 --iterations 2000
"""

from __future__ import annotations

import _venv  # noqa: F401  # isort: skip - runs this in the checkout's .venv

import math
import shlex
import sys
from pathlib import Path

from celery import group
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from clusterkit.runtime import client
from clusterkit.runtime.errors import BadInputError
from tasks.app import app
from tasks.compute import PIXEL_MAX, mandelbrot_tile, plan_tiles, tile_pixels


def main() -> None:
    """Submit the tiles as a group, wait, and put the picture together."""
    parser = client.argument_parser(__doc__)
    parser.add_argument("--out", required=True, type=Path, help="the picture; its ending says the format")
    for name, default in {"width": 1200, "height": 900, "iterations": 500, "tile": 100}.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default {default}")
    parser.add_argument("--view", type=float, nargs=3, default=(-0.65, 0, 3.2), metavar=("RE", "IM", "SPAN"))
    parser.add_argument("--resume", metavar="GROUP_ID", help="fetch the tiles of an interrupted run")
    options = parser.parse_args()
    out, width, height = options.out, options.width, options.height
    if out.suffix.lower() not in Image.registered_extensions() or not out.parent.is_dir():
        raise BadInputError(f"{out}: not the name of a picture in a folder that exists")
    plan = plan_tiles(width, height, options.tile, options.view, options.iterations)
    client.connect(app, options.cluster)
    if options.resume:
        result = client.restore(app, options.resume)
        if len(result) != len(plan):
            raise BadInputError(f"group {options.resume} has {len(result)} tiles, these options {len(plan)}")
    else:
        result = group(mandelbrot_tile.s(**arguments) for arguments in plan.values()).apply_async()
        result.save()
    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("tiles", total=len(plan))
        tiles = client.wait(
            result,
            on_progress=lambda done, _: bar.update(task, completed=done),
            resume=shlex.join(["python3", *sys.argv, "--resume", result.id]),
        )
    colours = [colour(value) for value in range(PIXEL_MAX + 1)]
    picture = Image.new("RGB", (width, height))
    for place, tile in zip(plan, tiles, strict=True):
        pixels = b"".join([colours[value] for value in tile_pixels(tile)])
        picture.paste(Image.frombytes("RGB", (tile["width"], tile["height"]), pixels), place)
    picture.save(out)
    print(out)


def colour(value: int) -> bytes:
    """Give a pixel value its colour: black inside, outside waves from night blue over cream to amber."""
    turn = 1.6 * (value / PIXEL_MAX) ** 0.35
    waves = (0.5 - 0.5 * math.cos(math.tau * (turn - shift)) for shift in (0.1, 0.05, -0.05))
    return bytes(round(255 * wave) for wave in waves) if value else b"\0\0\0"


if __name__ == "__main__":
    client.run(main)
