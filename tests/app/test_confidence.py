"""Where the model is least sure, by hand."""

import numpy as np

from ctsam3d.labelapp.confidence import least_sure_zyx


def test_the_widest_doubt_wins_away_from_clicks():
    probability = np.zeros((40, 20, 20), np.float32)
    probability[2:4, 5, 5] = 0.5  # two voxels, in full doubt
    probability[20:29, 6:15, 6:15] = 0.7  # a wide one: 4 * 0.7 * 0.3 = 0.84 throughout
    assert least_sure_zyx(probability, [])[0] in range(23, 26)
    assert least_sure_zyx(probability, [(24, 10, 10)]) != least_sure_zyx(probability, [])
    place = least_sure_zyx(probability, [(24, 10, 10)])
    assert max(abs(a - b) for a, b in zip(place, (24, 10, 10))) > 5


def test_no_doubt_no_place():
    probability = np.zeros((9, 9, 9), np.float32)
    probability[4:] = 1
    assert least_sure_zyx(probability, []) is None
    probability[4, 4, 4] = 0.5
    assert least_sure_zyx(probability, [(4, 4, 4), (0, 0, 0), (8, 8, 8), (8, 0, 0), (0, 8, 8)]) is None
