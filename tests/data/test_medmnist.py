import numpy as np
import pytest

from vimamba.data import DataError, MedMNIST


@pytest.fixture
def make_npz(tmp_path):
    """Write a file in MedMNIST's layout; arrays can be replaced by name."""

    def make(classes: int = 3, *, color: bool = False, multi_label: bool = False, **replaced):
        rng = np.random.default_rng(0)
        arrays = {}
        for split, count in (("train", 12), ("val", 4), ("test", 5)):
            shape = (count, 28, 28, 3) if color else (count, 28, 28)
            arrays[f"{split}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
            labels = np.arange(count).reshape(-1, 1) % classes
            if multi_label:
                labels = rng.integers(0, 2, (count, classes))
            arrays[f"{split}_labels"] = labels.astype(np.uint8)
        arrays.update(replaced)
        np.savez(tmp_path / "mnist.npz", **{k: v for k, v in arrays.items() if v is not None})
        return str(tmp_path / "mnist.npz")

    return make


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize("in_chans", [1, 3])
def test_grey_and_color_files_give_the_channels_asked_for(make_npz, color, in_chans):
    data = MedMNIST(make_npz(color=color), img_size=28, in_chans=in_chans)
    image, label = data.dataset("val")[1]
    assert image.shape == (in_chans, 28, 28)
    assert label == 1
    assert data.num_classes == 3
    assert {k: len(v) for k, v in data.catalogue.splits.items()} == {
        "train": 12,
        "val": 4,
        "test": 5,
    }


def test_the_pixels_are_those_of_the_file(make_npz):
    path = make_npz()
    data = MedMNIST(path, img_size=28, in_chans=1, mean=[0.0], std=[1.0])
    expected = np.load(path)["test_images"][2] / 255
    np.testing.assert_allclose(data.dataset("test")[2][0][0].numpy(), expected, atol=1e-6)
    assert data.catalogue.splits["test"][2].name == "test_images[2]"


def test_rows_of_zeros_and_ones_are_multi_label(make_npz):
    data = MedMNIST(make_npz(4, multi_label=True), classes=["a", "b", "c", "d"])
    assert data.multi_label
    assert data.class_names == ["a", "b", "c", "d"]
    assert data.dataset("val")[0][1].shape == (4,)
    assert data.class_counts == np.load(data.root)["train_labels"].sum(0).tolist()


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"val_images": None}, r"lacks \['val_images'\]"),
        (
            {"test_labels": np.full((5, 1), 9, np.uint8)},
            r"labels lie in \[9, 9\], expected \[0, 2\]",
        ),
        ({"val_labels": np.zeros((3, 1), np.uint8)}, "4 images but 3 labels"),
        ({"train_images": np.zeros((12, 28, 28, 28), np.uint8)}, "are not 2-D"),
        ({"val_labels": np.zeros((4, 2), np.uint8)}, "do not fit 3 classes"),
    ],
)
def test_a_file_that_does_not_fit_is_an_error(make_npz, replaced, message):
    with pytest.raises(DataError, match=message):
        MedMNIST(make_npz(**replaced)).catalogue  # noqa: B018


def test_another_kind_of_file_is_an_error(tmp_path):
    (tmp_path / "x.npz").write_text("not zipped")
    with pytest.raises(DataError, match=r"is not an \.npz file"):
        MedMNIST(str(tmp_path / "x.npz")).catalogue  # noqa: B018
    with pytest.raises(DataError, match=r"is not an \.npz file"):
        MedMNIST(str(tmp_path / "none.npz")).catalogue  # noqa: B018
