import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vimamba.data.preprocessing import Intensity
from vimamba.labels import IGNORE
from vimamba.tasks.overlays import (
    OPACITY,
    View,
    choose_slices,
    class_colors,
    draw_card,
    find_view,
    legend_entries,
    overlay,
    panel,
    thumbnail,
)
from vimamba.tasks.pictures import draw_confusion, draw_curves, is_ours, show_image
from vimamba.tasks.segmentation.pictures import draw_masked_data

pytestmark = pytest.mark.draws


def test_images_of_one_view_share_one_range():
    dark, darker = np.full((8, 8, 3), 0.2), np.full((8, 8, 3), 0.1)
    dark[0], darker[0] = 0.3, 0.0
    view = find_view([dark, darker])
    assert (view.low, view.high) == (pytest.approx(0, abs=0.01), pytest.approx(0.3, abs=0.01))
    assert view(dark)[4, 4, 0] == pytest.approx(2 * view(darker)[4, 4, 0], abs=2)
    # only images that are dark overall are stretched
    assert find_view([dark, np.full((8, 8, 3), 0.8)]) == View((0, 1, 2), 3)


def test_a_view_describes_what_is_shown():
    assert View((0, 1, 2), 3).text() == (
        "black is 0 %, white 100 % of the range of values everywhere"
    )
    window = Intensity(window=(-100, 300))
    assert View((0, 0, 0), 1, 0, 0.5).text(window) == "black is -100, white 100 everywhere"
    assert View((0, 1, 2), 13).text(bands=None).startswith("bands 1, 2, 3 as red, green, blue; ")
    assert View((0, 1, 2), 3).text(bands=[3, 2, 1]).startswith("bands 4, 3, 2 as red")
    assert "0.5 and 99.5 of a case" in View((0, 0, 0), 1).text(Intensity(percentiles=(0.5, 99.5)))


@pytest.mark.parametrize("below", [(0, 0, 0), (255, 255, 255), (0, 255, 0), (90, 30, 200)])
def test_a_class_has_the_hue_of_the_legend_over_anything(below):
    image = np.full((40, 40, 3), below, dtype=np.uint8)
    mask = np.zeros((40, 40), dtype=np.uint8)
    mask[10:30, 10:30] = 1
    colors = class_colors(2, background=True)
    drawn = overlay(image, mask, colors, background=True)
    inside, color = drawn[20, 20].astype(float), np.asarray(colors[1], dtype=float)
    # gray added to the color: differences between red, green and blue are the color's
    np.testing.assert_allclose(np.diff(inside), OPACITY * np.diff(color), atol=1.5)
    assert tuple(drawn[20, 10]) == colors[1]
    assert tuple(drawn[20, 9]) == (0, 0, 0)
    assert tuple(drawn[0, 0]) == below


def test_ignored_pixels_are_striped():
    mask = np.full((40, 40), IGNORE, dtype=np.uint8)
    drawn = overlay(np.zeros((40, 40, 3), np.uint8), mask, class_colors(2, True), True)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 2


def test_pixels_are_square_and_small_images_enlarged():
    image = np.zeros((20, 40, 3), dtype=np.uint8)
    assert panel(image, None, (), True, aspect=3.0, longest=240).shape == (240, 160, 3)
    image[3, 5] = 200
    enlarged = panel(image, None, (), True, longest=230)
    assert enlarged.shape == (100, 200, 3)  # by 5, so that every pixel is a square
    assert (enlarged[15:20, 25:30] == 200).all()
    assert enlarged.any(-1).sum() == 25
    mask = np.zeros((300, 600), np.uint8)
    large = panel(np.full((300, 600, 3), 7, np.uint8), mask, [(0, 0, 0)], True, longest=100)
    assert large.shape == (50, 100, 3)


def test_slices_are_chosen_where_the_labels_are():
    labels = np.zeros((40, 4, 4), dtype=np.uint8)
    assert choose_slices(labels, True) == [20]
    labels[12] = 1
    assert choose_slices(labels, True) == [12]
    labels[10:20, 0, 0] = 2
    chosen = choose_slices(labels, True)
    assert len(chosen) == 4
    assert 12 in chosen
    assert all(10 <= place < 20 for place in chosen)
    assert len(choose_slices(labels, False)) == 4


def test_a_card_has_its_panels_captions_and_legend(tmp_path):
    panels = [("axial 3 of 9", np.full((60, 50, 3), value, np.uint8)) for value in (10, 20)]
    entries = legend_entries(["rest", "a", "b"], class_colors(3, True), True)
    assert entries[0] == ("rest (no color)", None)
    card = draw_card(panels, entries, "black is 0", best=1)
    from vimamba.tasks.segmentation.predict import save_image

    save_image(card, tmp_path / "card.png")
    assert (thumbnail(tmp_path / "card.png") == 20).all()
    colors = {color for _, color in card.getcolors(10**6)}
    assert set(class_colors(3, True)[1:]) <= colors
    many = legend_entries([str(n) for n in range(30)], class_colors(30, False), False)
    assert many[-1] == ("and 18 more", None)


def test_grey_images_are_not_stretched():
    axes = Figure().subplots()
    show_image(axes, View((0, 0, 0), 1)(np.full((4, 4, 1), 0.5)), "")
    drawn = np.asarray(axes.images[0].get_array())
    assert drawn.shape == (4, 4, 3)
    assert (drawn == 128).all()


def test_a_class_that_is_not_there_and_empty_cells_can_be_drawn(tmp_path):
    report = {"confusion": [[5, 1, 0], [0, 6, 1], [0, 0, 0]], "accuracy": None, "images": 13}
    with np.errstate(all="raise"):
        draw_confusion(report, ["a$_$", "b", "c"], tmp_path / "c.png")
    assert is_ours(tmp_path / "c.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "other.png")
    assert not is_ours(tmp_path / "other.png")
    (tmp_path / "m.csv").write_text("epoch,train/loss,val/loss,val/auroc,lr\n1,1,,,0.1\n2,1,2,,0\n")
    draw_curves(tmp_path / "m.csv", tmp_path / "curves.png", {"auroc": "AUROC"})
    assert is_ours(tmp_path / "curves.png")


def test_samples_of_the_data_show_spacing_and_what_is_ignored(tmp_path, monkeypatch):
    nibabel = pytest.importorskip("nibabel")
    from vimamba.data import Labels, NiftiSlices
    from vimamba.tasks.segmentation import pictures as mask_pictures

    rng = np.random.default_rng(0)
    for name in "abcdef":
        mask = np.zeros((20, 16, 8), dtype=np.uint8)
        mask[4:12, 4:12, 2:6] = 1
        mask[:3] = IGNORE
        for folder, values in (("images", mask * 100.0 + rng.normal(0, 9, mask.shape)),
                               ("masks", mask)):  # fmt: skip
            (tmp_path / folder).mkdir(exist_ok=True)
            volume = nibabel.Nifti1Image(values.astype(np.int16), np.diag([-1, -1, 4, 1.0]))
            nibabel.save(volume, tmp_path / folder / f"{name}.nii.gz")
    data = NiftiSlices(
        str(tmp_path), axis="coronal", img_size=16, intensity=Intensity(window=(0, 200)), workers=0,
        labels=Labels(classes=["rest", "block"]),
    )  # fmt: skip
    legends, shapes = [], []
    monkeypatch.setattr(
        mask_pictures, "add_legend", lambda *args, **kwargs: legends.append((args[1], kwargs))
    )
    monkeypatch.setattr(
        mask_pictures, "show_image", lambda axes, image, *_: shapes.append(image.shape)
    )
    draw_masked_data(data, tmp_path / "data.png", columns=2)
    assert legends[0][1] == {"ignored": True, "title": "black is 0, white 200 everywhere"}
    # 8 slices of 4 mm by 20 columns of 1 mm, twice; then the network's square
    assert {shape[0] / shape[1] for shape in shapes[:2]} == {1.6}
    assert shapes[2][0] == shapes[2][1]
