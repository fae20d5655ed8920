import numpy as np
from scipy.interpolate import RBFInterpolator

from magicedit.action_units import NAMES
from magicedit.warping import displacement_fields
from magicedit.warping.muscles import LANDMARKS, neutral_mesh
from magicedit.warping.splines import sheet_fields


def test_each_sheet_is_scipys_smoothed_thin_plate_spline():
    rng = np.random.default_rng(0)
    places = tuple(rng.uniform(-2, 2, (count, 2)) for count in (60, 9, 7))
    values = tuple(rng.normal(size=(len(part), 3)) for part in places)
    grid = rng.uniform(-2, 2, (700, 2))  # more than is computed at once
    fields = sheet_fields(places, values, grid)
    assert fields.shape == (700, 2, 3)
    for sheet, own in enumerate((1, 2)):
        known, moves = (np.concatenate([parts[0], parts[own]]) for parts in (places, values))
        spline = RBFInterpolator(known, moves, kernel="thin_plate_spline", smoothing=1e-3)
        np.testing.assert_allclose(fields[:, sheet], spline(grid), atol=1e-8)
    assert np.abs(fields[:, 0] - fields[:, 1]).max() > 0.1


def test_float32_errs_by_little():
    """Of landmarks of a face, which lie close to each other."""
    mesh = neutral_mesh()[:, :2] * [1, -1] * 80 + 176
    landmarks = np.concatenate([mesh, np.full((LANDMARKS - len(mesh), 2), 176.0)])
    exact, rounded = (
        displacement_fields(landmarks, 352, NAMES, 8, kind) for kind in (np.float64, np.float32)
    )
    assert np.abs(exact).max() > 20
    error = np.abs(exact - rounded)
    assert 1e-6 < error.max() < 0.2
    assert error.mean() < 0.01
