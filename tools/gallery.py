"""Draw the pictures of scan orders that the README shows: python tools/gallery.py [folder]."""

import sys
from pathlib import Path

from vimamba.visualize import draw_gallery, draw_scan_order

DEFAULT_FOLDER = Path(__file__).parents[1] / "docs" / "images"


def main() -> None:
    """Write scan_orders.png and one picture of a single order."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_FOLDER
    print(draw_gallery(folder / "scan_orders.png"))
    print(draw_scan_order("hilbert", (14, 14), folder / "scan_hilbert.png"))


if __name__ == "__main__":
    main()
