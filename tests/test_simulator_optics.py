"""The virtual optics against the limits that theory gives."""

import numpy as np
import pytest
from scipy import special

from acquisition.simulator.optics import Camera, Map, Optics, expose, form_image, uneven_light
from sesmo_live.errors import UsageError

SHARP = Optics(ring_width=0.01, aperture=0.5)
PIXEL_UM = 0.5


def grating(cycles: int, phase_rad: float, optics: Optics, n: int = 256) -> tuple[Map, float]:
    """Return a weak sinusoidal phase object as thickness in µm, and its frequency in cycles per µm."""
    wave = np.cos(2 * np.pi * cycles * np.arange(n) / n)
    thickness = phase_rad * optics.wavelength_um / (2 * np.pi * optics.refraction) * np.tile(wave, (n, 1))
    return thickness.astype(np.float32), cycles / (n * PIXEL_UM)


def contrast(light: Map, cycles: int) -> float:
    """Return the signed amplitude of the image at the grating's own frequency."""
    n = light.shape[1]
    return float(2 * np.mean(light[0] * np.cos(2 * np.pi * cycles * np.arange(n) / n)))


@pytest.mark.parametrize("defocus_um", [0.0, 25.0, -60.0])
@pytest.mark.parametrize("shape", [(64, 96), (101, 64)])
def test_an_empty_field_is_flat(shape: tuple[int, int], defocus_um: float) -> None:
    light = form_image(np.zeros(shape, np.float32), 1.24, Optics(), defocus_um, blur_px=0.6)
    assert light.shape == shape
    assert light.dtype == np.float32
    np.testing.assert_allclose(light, 1.0, atol=1e-5)


@pytest.mark.parametrize("transmission", [0.3, 0.5, 0.8])
def test_a_weak_phase_shows_with_the_contrast_of_zernike(transmission: float) -> None:
    """I = |−it + iφ|² / t² ≈ 1 − 2φ/t: thicker is darker, and the darker the ring the stronger."""
    optics = Optics(ring_width=0.01, aperture=0.5, ring_transmission=transmission)
    thickness, _ = grating(10, 0.004, optics)
    assert contrast(form_image(thickness, PIXEL_UM, optics), 10) == pytest.approx(-2 * 0.004 / transmission, rel=0.02)


@pytest.mark.parametrize("defocus_um", [-12.0, -5.0, 5.0, 12.0, 20.0])
def test_defocus_weakens_a_weak_phase_as_theory_says(defocus_um: float) -> None:
    thickness, f = grating(12, 0.004, SHARP)
    focused = contrast(form_image(thickness, PIXEL_UM, SHARP), 12)
    fresnel = np.cos(np.pi * SHARP.wavelength_um * defocus_um * f**2)
    annulus = special.j0(2 * np.pi * f * defocus_um * SHARP.annulus_na)
    found = contrast(form_image(thickness, PIXEL_UM, SHARP, defocus_um), 12)
    assert found == pytest.approx(focused * fresnel * annulus, abs=0.01 * abs(focused))


def test_the_aperture_cuts_what_is_finer_than_it_resolves() -> None:
    optics = Optics(aperture=0.1)
    coarse, fine = (contrast(form_image(grating(k, 0.004, optics)[0], PIXEL_UM, optics), k) for k in (12, 50))
    assert abs(fine) < 0.01 * abs(coarse)


def test_a_cell_is_dark_in_a_bright_halo_and_a_wide_one_shades_off() -> None:
    y, x = np.mgrid[-128:128, -128:128] * PIXEL_UM
    radius = np.hypot(x, y)
    small, wide = (
        form_image((1.5 * (radius < r)).astype(np.float32), PIXEL_UM, Optics(), blur_px=0.6) for r in (10.0, 40.0)
    )
    assert small[128, 128] < 0.9
    assert small[128, 128 + 22] > 1.02  # 1 µm outside the edge
    assert small[128, 250] == pytest.approx(1.0, abs=0.01)
    assert wide[128, 128] > small[128, 128] + 0.05  # the middle of the wide one is nearly as bright as the field


@pytest.mark.parametrize(
    ("bits", "dtype"), [(8, np.uint8), (10, np.uint16), (12, np.uint16), (14, np.uint16), (16, np.uint16)]
)
def test_the_camera_fills_its_bits(bits: int, dtype: type[np.unsignedinteger]) -> None:
    light = np.ones((64, 64), np.float32)
    light[:8] = 0
    light[-8:] = 50
    grey = expose(light, Camera(bits=bits), np.ones_like(light), np.random.default_rng(1))
    assert grey.dtype == dtype
    top = 2**bits - 1
    assert grey[10:50].mean() == pytest.approx(0.4 * top, rel=0.01)
    assert grey[:8].mean() == pytest.approx(0.02 * top, rel=0.2)
    assert (grey[-8:] == top).all()


def test_noise_is_that_of_counted_electrons() -> None:
    """The variance over the mean, in electrons, is one (plus the read noise)."""
    camera = Camera(bits=16, electrons=5000, read_noise=0)
    light = np.ones((256, 256), np.float32)
    grey = expose(light, camera, light, np.random.default_rng(2)).astype(float)
    per_electron = (2**16 - 1) * (camera.background - camera.offset) / camera.electrons
    assert grey.var() / per_electron**2 == pytest.approx(5000, rel=0.03)


def test_no_camera_has_seven_bits() -> None:
    with pytest.raises(UsageError, match="7 bits is not simulated; choose one of 8, 10"):
        Camera(bits=7)


def test_light_is_uneven_but_the_same_for_one_instrument() -> None:
    light = uneven_light(200, 300, seed=3)
    assert light.shape == (200, 300)
    assert 0.75 < light.min() < 0.95 < light.max() < 1.03
    assert (light == uneven_light(200, 300, seed=3)).all()
    assert (light != uneven_light(200, 300, seed=4)).any()
