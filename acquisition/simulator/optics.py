"""From the thickness of the cells to grey values: phase ring, objective, defocus, camera."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import fft, special

from sesmo_live.errors import UsageError
from sesmo_live.records import Pixels

Map = NDArray[np.float32]
"""A two-dimensional map of the sample or of the light, height by width."""

BITS = (8, 10, 12, 14, 16)
"""The bit depths that a camera may have; all but 8 are kept as uint16."""


@dataclass(frozen=True, slots=True)
class Optics:
    """A positive phase-contrast objective: a 10× of NA 0.3 unless told otherwise.

    `refraction` is the difference of refractive index between a cell and its medium; it is set lower than in life
    (0.02 to 0.03), because the illumination here is a point and only weak phases then look as under a real ring.
    `ring_width` is the half-width of the phase ring in cycles per µm: its inverse is the width of the halo.
    `annulus_na` is the aperture of the condenser's annulus, by which a lost focus smears the image.
    """

    wavelength_um: float = 0.55
    aperture: float = 0.3
    refraction: float = 0.008
    ring_width: float = 0.04
    ring_transmission: float = 0.5
    annulus_na: float = 0.1


@dataclass(frozen=True, slots=True)
class Camera:
    """A camera: light in electrons per pixel of empty field, read noise, blur, gain and offset to `bits`.

    `background` is the grey value of the empty field and `offset` that of darkness, both as fractions of full scale.
    """

    bits: int = 12
    electrons: float = 9000.0
    read_noise: float = 4.0
    blur_px: float = 0.6
    background: float = 0.4
    offset: float = 0.02

    def __post_init__(self) -> None:
        if self.bits not in BITS:
            raise UsageError(
                f"a camera of {self.bits} bits is not simulated; choose one of {', '.join(map(str, BITS))}"
            )


@lru_cache(maxsize=8)
def _frequencies(height: int, width: int, pixel_um: float) -> Map:
    """Return the spatial frequency of every Fourier coefficient, in cycles per µm."""
    rows, columns = np.fft.fftfreq(height, pixel_um), np.fft.fftfreq(width, pixel_um)
    frequency: Map = np.hypot(rows[:, None], columns[None, :]).astype(np.float32)
    return frequency


@lru_cache(maxsize=8)
def _focused_transfer(height: int, width: int, pixel_um: float, optics: Optics) -> NDArray[np.complex64]:
    """Return what ring and aperture let pass, as a complex factor for every Fourier coefficient of the field."""
    r = _frequencies(height, width, pixel_um)
    ring = np.exp(-((r / optics.ring_width) ** 2))
    passed = (1 - ring) - 1j * optics.ring_transmission * ring
    edge = np.clip((r - optics.aperture / optics.wavelength_um) / 0.02, -60, 60)
    return np.asarray(passed / (1 + np.exp(edge)), np.complex64)


def form_image(
    thickness_um: Map, pixel_um: float, optics: Optics, defocus_um: float = 0.0, blur_px: float = 0.0
) -> Map:
    """Return the light behind the microscope, 1.0 where the field is empty, float32 of the shape of `thickness_um`.

    The field exp(iφ) with φ = 2π Δn H / λ is filtered by the ring (which attenuates and retards the undiffracted
    light, so that thicker is darker), the aperture and the Fresnel factor exp(−iπλz f²) of the defocus (Goodman,
    Introduction to Fourier Optics, ch. 4 and 6). An annular source shifts the defocused image in every direction,
    which multiplies the spectrum of the intensity by J₀(2π f z NA). Both borders are taken as periodic.
    """
    height, width = thickness_um.shape
    phase = thickness_um * np.float32(2 * np.pi * optics.refraction / optics.wavelength_um)
    field = np.empty((height, width), np.complex64)
    field.real, field.imag = np.cos(phase), np.sin(phase)
    spectrum = fft.fft2(field, overwrite_x=True)
    spectrum *= _focused_transfer(height, width, pixel_um, optics)
    if defocus_um:
        spectrum *= _fresnel(height, width, pixel_um, optics.wavelength_um, defocus_um)
    wave = fft.ifft2(spectrum, overwrite_x=True)
    light = (wave.real**2 + wave.imag**2) / np.float32(optics.ring_transmission**2)
    smear = _smear(height, width, pixel_um, optics.annulus_na * defocus_um, blur_px)
    image: Map = fft.irfft2(fft.rfft2(light) * smear, s=(height, width))
    return image


def _fresnel(
    height: int, width: int, pixel_um: float, wavelength_um: float, defocus_um: float
) -> NDArray[np.complex64]:
    """Return the Fresnel factor of a defocus; it is separable, hence two short vectors."""
    rows, columns = (
        np.exp(-1j * np.pi * wavelength_um * defocus_um * np.fft.fftfreq(n, pixel_um) ** 2).astype(np.complex64)
        for n in (height, width)
    )
    return np.asarray(rows[:, None] * columns[None, :], np.complex64)


def _smear(height: int, width: int, pixel_um: float, shift_um: float, blur_px: float) -> Map:
    """Return what defocused annular light (a ring of radius `shift_um`) and the camera's blur leave of the light."""
    r = _frequencies(height, width, pixel_um)[:, : width // 2 + 1]
    fine = np.linspace(0, float(r.max()), 4096)
    curve = special.j0(2 * np.pi * fine * shift_um) * np.exp(-2 * (np.pi * fine * pixel_um * blur_px) ** 2)
    smear: Map = np.interp(r, fine, curve).astype(np.float32)
    return smear


def expose(light: Map, camera: Camera, shading: Map, rng: np.random.Generator) -> Pixels:
    """Return the grey values that `camera` reads of `light` under uneven illumination: uint8, or uint16 above 8 bit.

    `light` and `shading` are float32 of one shape, 1.0 for the empty field. Shot noise is Poisson in the normal
    approximation, which at thousands of electrons cannot be told apart.
    """
    electrons = light * shading * np.float32(camera.electrons)
    spread = np.sqrt(np.maximum(electrons, 0) + np.float32(camera.read_noise**2))
    electrons += spread * rng.standard_normal(light.shape, dtype=np.float32)
    top = 2**camera.bits - 1
    gain = top * (camera.background - camera.offset) / camera.electrons
    counts = np.clip(np.rint(electrons * np.float32(gain) + np.float32(top * camera.offset)), 0, top)
    return np.asarray(counts, np.uint8) if camera.bits == 8 else np.asarray(counts, np.uint16)


@lru_cache(maxsize=8)
def uneven_light(height: int, width: int, seed: int, depth: float = 0.12) -> Map:
    """Return an illumination with a bright middle, falling by about `depth` to the corners, and dust on the optics.

    float32, 1.0 in the middle; the same for every frame of one instrument (`seed`).
    """
    rng = np.random.default_rng([seed, 7])
    y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    middle = rng.normal(0, 0.15, 2)
    shading = 1 - depth / 2 * ((x - middle[0]) ** 2 + (y - middle[1]) ** 2)
    for _ in range(int(rng.poisson(5))):
        radius, dark = rng.uniform(0.02, 0.06), rng.uniform(0.01, 0.03)
        at = np.hypot(x - rng.uniform(-1, 1), (y - rng.uniform(-1, 1)) * height / width) / radius
        shading -= dark * np.exp(-((at - 1) ** 2) * 4)
    return np.asarray(shading, np.float32)
