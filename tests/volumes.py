"""Small volumes with a known truth, stored along any axes."""

import nibabel
import numpy as np
from nibabel import orientations


def make_volume(seed, shape=(12, 24, 20)):
    """A box (class 1) and a ball (class 2), (slices, rows, columns): image and mask."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(shape, np.uint8)
    z, y, x = (int(rng.integers(1, n // 4 + 1)) for n in shape)
    mask[z : z + shape[0] // 2, y : y + 8, x : x + 6] = 1
    grid = np.stack(np.mgrid[tuple(slice(n) for n in shape)], -1)
    middle = np.asarray([shape[0] / 2, shape[1] - 6, shape[2] - 6])
    mask[np.linalg.norm((grid - middle) * (1.5, 1, 1), axis=-1) < 4] = 2
    image = np.asarray([0.0, 100.0, -80.0])[mask] + rng.normal(0, 10, shape)
    return np.rint(image).astype(np.int16), mask


def store(path, volume, axcodes="LPS", spacing=(3.0, 1.0, 0.9)):
    """Write (slices, rows, columns[, channels]) along the axes given by the affine of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deep, tall, wide = spacing
    affine = np.diag([-wide, -tall, deep, 1.0])
    affine[:3, 3] = (30.0, -12.0, 7.5)
    lps = volume.transpose(2, 1, 0, *range(3, volume.ndim))
    change = orientations.ornt_transform(
        orientations.axcodes2ornt(("L", "P", "S")), orientations.axcodes2ornt(tuple(axcodes))
    )
    stored = orientations.apply_orientation(lps, change)
    affine = affine @ orientations.inv_ornt_aff(change, lps.shape[:3])
    nibabel.save(nibabel.Nifti1Image(stored, affine), path)


ORIENTATIONS = ("LPS", "RAS", "ASR", "PIL")


def write_cases(root, count=8, **kwargs):
    """Write `root/{images,masks}/<n>.nii.gz`, cycling through four orientations."""
    for number in range(count):
        image, mask = make_volume(number, **kwargs)
        axes = ORIENTATIONS[number % 4]
        store(root / "images" / f"{number}.nii.gz", image, axes)
        store(root / "masks" / f"{number}.nii.gz", mask, axes)
    return root


def write_brats(root, count, year):
    """Cases of four modalities, named as in 2021 or in 2023; two scans per patient in 2023."""
    modalities = ("t1", "t1ce", "t2", "flair") if year == 2021 else ("t1n", "t1c", "t2w", "t2f")
    mark, enhancing = ("_", 4) if year == 2021 else ("-", 3)
    for number in range(count):
        case = f"BraTS2021_{number:05}"
        if year == 2023:
            case = f"BraTS-GLI-{number // 2:05}-00{number % 2}"
        image, mask = make_volume(number)
        for place, modality in enumerate(modalities):
            store(root / case / f"{case}{mark}{modality}.nii.gz", image + place)
        mask[:2, :2, :2] = enhancing
        store(root / case / f"{case}{mark}seg.nii.gz", mask)
    return root
