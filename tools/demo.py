"""Trains a small Vim on real handwritten digits and shows the result; run by `make demo`.

The digits are the 1,797 scans that come with scikit-learn, 8 x 8 pixels each, saved as an image
folder, so training works exactly as with your own folder.
"""

import json
import sys
from pathlib import Path

import numpy as np
from demos import COMMAND, train
from PIL import Image
from sklearn.datasets import load_digits

from vimamba.files import write_folder

IMAGES = Path("demo/digits")
RUN = Path("demo/run")
SIDE = 32  # pixels, of the enlarged scans
LIGHTEST = 16  # gray levels of the scans


def write_digits(folder: Path) -> int:
    """Write `folder/<digit>/<number>.png`; returns how many images there are."""
    digits = load_digits()
    pairs = zip(digits["images"], digits["target"], strict=True)
    with write_folder(folder) as part:
        for number, (scan, digit) in enumerate(pairs):
            (part / str(digit)).mkdir(exist_ok=True)
            pixels = np.rint(scan * 255 / LIGHTEST).astype(np.uint8)
            large = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            large.save(part / str(digit) / f"{number:04}.png")
    return len(digits["target"])


def main() -> int:
    """Write the images, train, and print the results."""
    count = write_digits(IMAGES)
    print(f"{count} handwritten digits written to {IMAGES}")
    print("Training takes about two minutes on a CPU.", flush=True)
    done, took = train("classification/digits_vim", IMAGES, RUN)
    if done:
        return done
    accuracy = json.loads((RUN / "metrics.json").read_text())["test"]["accuracy"]
    print(
        f"\nTest accuracy {accuracy:.1%} after {took}.\n"
        f"Everything is in {RUN}; look at {RUN}/samples.png first.\n"
        "Try next:\n"
        f"  {COMMAND} predict {RUN} {IMAGES}/7 --out demo/sevens.csv  # most were trained on\n"
        f"  {COMMAND} fit --data FOLDER_OF_CLASS_FOLDERS --model vim_tiny_patch16_224 --pretrained"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
