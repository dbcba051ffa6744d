import pytest
import torch

from vimamba.tasks.windows import Scene, slide


@pytest.mark.parametrize("size", [(40, 33), (10, 50), (9, 7), (16, 17)])
@pytest.mark.parametrize("overlap", [0, 0.5, 0.9])
@pytest.mark.parametrize("window", [(16, 16), (12, 20)])
def test_windows_give_what_monai_gives(size, overlap, window):
    inferers = pytest.importorskip("monai.inferers.inferer")
    net = torch.nn.Conv2d(3, 2, 5, padding=2)
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    inferer = inferers.SlidingWindowInferer(window, 4, overlap, mode="gaussian")
    device = torch.device("cpu")
    progress = []
    with torch.no_grad():
        found = slide(
            Scene.of(image), net, window, overlap=overlap, batch_size=3, device=device,
            advance=lambda *counts: progress.append(counts),
        )  # fmt: skip
        flipped = Scene.of(image).flip((2, 3))
        mirrored = slide(flipped, net, window, overlap=overlap, batch_size=4, device=device)
        # sums of up to a hundred windows in another order
        torch.testing.assert_close(found, inferer(image, net), rtol=1e-4, atol=1e-5)
        expected = inferer(image.flip(2, 3), net)
        torch.testing.assert_close(mirrored, expected, rtol=1e-4, atol=1e-5)
    assert progress[-1][0] == progress[-1][1]


def test_only_the_windows_of_one_batch_exist_at_a_time():
    cuts, alive = [], []

    def cut(rows, columns):
        cuts.append((rows, columns))
        return torch.zeros(1, 1, 8, 8)

    def net(image):
        alive.append(len(image))
        return image

    scene = Scene((64, 64), cut)
    with torch.no_grad():
        slide(scene, net, (8, 8), overlap=0, batch_size=4, device=torch.device("cpu"))
    assert len(cuts) == 64
    assert alive == [4] * 16
