"""`vimamba predict`: predictions of a run's checkpoint for new images."""

from pathlib import Path
from typing import Any

from vimamba.cli.inquiries import check_at_least, complete_options, make_parser

HELP = """\
Applies a run's checkpoint to new images.

  vimamba predict runs/digits new/ --out predictions.csv
  vimamba predict runs/digits a.png b.png --topk 3 --out predictions.json
  vimamba predict runs/digits list.csv --tta flips       # column "path" lists the images
  vimamba predict runs/nuclei new/ --out masks           # a segmentation run writes a folder
  vimamba predict runs/nuclei new/ --out masks --masks truth/    # and scores it
  vimamba predict runs/land scene.tif --out maps --cog --polygons geojson

A classification run writes a list (CSV or JSON, by the suffix of --out) and, next to it, a contact
sheet with the predictions. Its columns: path; label, the most likely class (with several labels per
image, all with 0.5 or more, joined by ;); probability, of the most likely class; label_1,
probability_1, label_2 and so on, the --topk most likely. The sheet has the list's name with .png.

A segmentation run writes a mask per image, in the values of the training masks (PNG; for NIfTI
volumes NIfTI with the same affine), overlays, a contact sheet and masks.csv, which lists the image
of each mask. Existing masks are not computed again, so after Ctrl-C or a crash the same command
continues. Images are named by their path relative to the given folder, or by the path in the list,
without drive, root, . and .. in it: nothing is written outside --out.

A change run compares two images, or two folders whose files match by name, BEFORE and AFTER, and
writes a folder in the same way: maps of 0, 1, 2 and so on in the order of the classes.

  vimamba predict runs/growth 2020.tif 2025.tif --out maps
  vimamba predict runs/growth 2020 2025 --out maps --masks roofs
  vimamba predict runs/cover 2020 2025 --out maps --masks "[cover_2020, cover_2025]"

With --masks, labels of the pairs' names are scored against: F1 of change and the scores of the
kind over all pixels, and pairs.csv with those of each pair.

A georeferenced GeoTIFF of any size becomes a GeoTIFF map on the same grid, read and written by
windows (pip install "vimamba[geo]"). After an interruption, the same command continues within the
scene. Several scenes are distributed over the processes of
`torchrun --no-python vimamba predict`.

A registration run takes two files, the moving and the fixed one, or CSV lists with the columns
moving and fixed (and moving_labels, fixed_labels):

  vimamba predict runs/brains moving.nii.gz fixed.nii.gz --out registered

It writes the warped volume, the displacement field in millimeters as ITK and ANTs read it, a
checkerboard of each pair, warped labels, and pairs.csv with scores.

A volume is a NIfTI file, or a DICOM series: a folder with its slices, or any of these files.

For a cross-validation, the probabilities of all folds are averaged, and so are those of several
runs: `vimamba predict runs/a new/ --with runs/b --with runs/c/checkpoints/last.ckpt`.

Only files written by `vimamba predict` are ever overwritten. An image that cannot be read, or for
which the network's output is not finite, gets no prediction and does not affect the others; it is
named at the end.

Exit codes: 0 all inputs were processed; 2 an error in the command, or nothing could be written;
3 some or all of the inputs failed; 130 interrupted.
"""


def predict(args: list[str]) -> int:
    """Classify or segment images.

    Args:
        args: The run, the images, options.

    Returns:
        Exit code.
    """
    parser = make_parser("predict", HELP)
    written = "folder written by `vimamba fit` or `vimamba cross-validate`"
    parser.add_argument("run", type=Path, help=written)
    parser.add_argument("inputs", type=Path, nargs="+", help="images, folders or CSV lists")
    out = "list or folder to write; RUN/predictions.csv or RUN/predictions by default"
    parser.add_argument("--out", type=Path, help=out)
    parser.add_argument("--ckpt", help="best (default), last or a file")
    further = "another run or checkpoint file, for an ensemble with RUN; may be repeated"
    parser.add_argument(
        "--with", dest="others", type=Path, action="append", default=[], metavar="RUN", help=further
    )
    views = "average over mirrored views: left-right, or all four"
    parser.add_argument("--tta", default="none", choices=("none", "hflip", "flips"), help=views)
    parser.add_argument("--batch-size", type=int, help="images, slices or windows at a time")
    parser.add_argument("--workers", type=int, default=0, help="processes that load images")
    parser.add_argument("--topk", type=int, help="classes to list per image")
    overlap = "overlap of neighboring windows, in [0, 1); as in the run by default"
    parser.add_argument("--overlap", type=float, help=overlap)
    truths = "folder of true masks, to score against; of semantic change two: [BEFORE, AFTER]"
    parser.add_argument("--masks", type=read_folders, metavar="FOLDER", help=truths)
    plain = "write the masks only"
    parser.add_argument("--no-overlays", action="store_true", default=None, help=plain)
    scores = "for volumes, also write the probabilities of all classes"
    parser.add_argument("--softmax", action="store_true", default=None, help=scores)
    scenes = parser.add_argument_group("GeoTIFF scenes")
    add_scene_options(scenes)
    given = parser.parse_args(args)
    check_at_least(given, topk=1, batch_size=1, workers=0)

    from vimamba.cli.folds import finished_run, voting_runs
    from vimamba.cli.runs import read_config
    from vimamba.cli.settings import task_class
    from vimamba.console import hide_hints
    from vimamba.tasks.registry import find_task, list_tasks
    from vimamba.tasks.tools import tools_of

    hide_hints()
    tools = tools_of(task_class(read_config(voting_runs(given.run)[0])))
    kinds = {name: tools_of(find_task(name)) for name in list_tasks()}
    options = {name: kind.PREDICT_OPTIONS for name, kind in kinds.items()}
    own = next((name for name, kind in kinds.items() if kind is tools), "these")
    complete_options(given, own, {**options, own: tools.PREDICT_OPTIONS}, "{} runs")
    return tools.predict(finished_run(given.run, given.ckpt, given.others), given)


def read_folders(text: str) -> list[Path]:
    """Folders as `vimamba fit` takes them: one, or a list in brackets."""
    if text.startswith("[") and text.endswith("]"):
        return [Path(part.strip().strip("\"'")) for part in text[1:-1].split(",")]
    return [Path(text)]


def add_scene_options(group: Any) -> None:
    """Options for maps of scenes; see `vimamba.tasks.scenes.predict_raster`."""
    cog = "write Cloud Optimized GeoTIFFs, with overviews"
    group.add_argument("--cog", action="store_true", default=None, help=cog)
    bands = "also write the probabilities, one 8-bit band per class, 254 for certain"
    group.add_argument("--probabilities", action="store_true", default=None, help=bands)
    polygons = "also write polygons with areas in square meters"
    group.add_argument("--polygons", choices=("geojson", "gpkg"), help=polygons)
    align = "for change: warp a second date on another grid onto the grid of the first"
    group.add_argument("--align", action="store_true", default=None, help=align)
    window = "side, or HEIGHTxWIDTH, of windows in pixels of the scene; default: as in training"
    group.add_argument("--window-size", help=window)
    memory = "GB for scores and strips of a scene, in addition to the network; 0.5 by default"
    group.add_argument("--memory", type=float, help=memory)
