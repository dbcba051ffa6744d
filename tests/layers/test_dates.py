"""Maps of two dates as one map, and back."""

import pytest
import torch

from vimamba.layers import join_dates, part_dates

BEFORE, AFTER = torch.tensor([[[[1, 2], [3, 4]]]]), torch.tensor([[[[5, 6], [7, 8]]]])
JOINED = {
    "parallel": [[[1, 2], [3, 4]], [[5, 6], [7, 8]]],
    "interleaved": [[[1, 5, 2, 6], [3, 7, 4, 8]]],
    "sequential": [[[1, 2, 5, 6], [3, 4, 7, 8]]],
}


@pytest.mark.parametrize("arrangement", JOINED)
def test_two_dates_stand_as_the_arrangement_says(arrangement):
    joined = join_dates(BEFORE, AFTER, arrangement)
    assert joined[0].tolist() == JOINED[arrangement]
    parts = part_dates(joined, arrangement)
    expected = [joined] if arrangement == "parallel" else [BEFORE, AFTER]
    assert all(torch.equal(a, b) for a, b in zip(parts, expected, strict=True))


def test_an_unknown_arrangement_is_named():
    for call in (lambda: join_dates(BEFORE, AFTER, "x"), lambda: part_dates(BEFORE, "x")):
        with pytest.raises(ValueError, match="arrangement='x' is unknown; choose from"):
            call()
