"""`technical`: each measure follows the change made to a picture, and its published formula."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ea_data.draw.raw import RawScene, draw_picture
from ea_data.protocols import Frames
from ea_data.score.technical import RAMPS, TechnicalOptions, TechnicalScorer, measure, rate


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return draw_picture(RawScene((0, 0, 0), 1, 0.0, "left", 3, "scenes"), 270, 480, 480)


def changed(picture: np.ndarray, **how: float) -> np.ndarray:
    image = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(how.get("blur", 0)))
    pixels = np.asarray(image, np.float32)
    pixels = (pixels - pixels.mean()) * how.get("contrast", 1) + pixels.mean()
    pixels = pixels * how.get("light", 1)
    noise = np.random.default_rng(0).normal(0, how.get("noise", 0), (*picture.shape[:2], 1))
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def value(pixels: np.ndarray) -> tuple[float, str]:
    score = TechnicalScorer(TechnicalOptions())(Frames(np.stack([pixels] * 2), np.arange(2.0)), {})
    return score.value, score.detail["weakest"]


def test_a_good_picture_rates_well(picture: np.ndarray) -> None:
    assert value(picture)[0] > 0.7


@pytest.mark.parametrize(
    ("how", "weakest"),
    [
        ({"blur": 6}, "sharpness"),
        ({"light": 0.08}, "exposure"),
        ({"contrast": 0.1}, "contrast"),
        ({"noise": 20}, "noise"),
    ],
)
def test_what_is_spoilt_rates_under_the_limit_and_is_named(
    picture: np.ndarray, how: dict[str, float], weakest: str
) -> None:
    rating, name = value(changed(picture, **how))
    assert rating < 0.3
    assert name == weakest or rate(measure(changed(picture, **how)))[weakest] < 0.3


def test_sharpness_falls_with_blur_and_not_with_contrast(picture: np.ndarray) -> None:
    blurred = [measure(changed(picture, blur=radius))["sharpness"] for radius in (0, 1, 2, 4, 8)]
    assert blurred == sorted(blurred, reverse=True)
    assert measure(changed(picture, contrast=0.5))["sharpness"] == pytest.approx(blurred[0], abs=0.1)


@pytest.mark.parametrize("sigma", [2.0, 5.0, 10.0])
def test_noise_is_its_standard_deviation(sigma: float) -> None:
    gray = np.full((256, 256, 3), 128, np.uint8)
    assert measure(changed(gray, noise=sigma))["noise"] == pytest.approx(sigma, rel=0.15)


def test_texture_is_no_noise(picture: np.ndarray) -> None:
    assert measure(picture)["noise"] < RAMPS["noise"][1]


def test_exposure_and_contrast_by_hand() -> None:
    half = np.zeros((64, 64, 3), np.uint8)
    half[:, 32:] = 255
    found = measure(half)
    assert found["exposure"] == pytest.approx(1)
    assert found["contrast"] == pytest.approx(0.5)
    assert measure(np.zeros((64, 64, 3), np.uint8))["exposure"] == 0


def test_colourfulness_by_the_published_formula() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    red, green, blue = (pixels[..., channel].astype(float) for channel in range(3))
    rg, yb = red - green, (red + green) / 2 - blue
    expected = np.sqrt(rg.var() + yb.var()) + 0.3 * np.sqrt(rg.mean() ** 2 + yb.mean() ** 2)
    assert measure(pixels)["colourfulness"] == pytest.approx(expected, rel=1e-4)
    gray = np.repeat(pixels[..., :1], 3, axis=2)
    assert measure(gray)["colourfulness"] == 0


@pytest.mark.parametrize("shape", [(1, 1, 3), (8, 8, 3), (17, 33, 3)])
def test_small_and_flat_frames_are_rated_not_refused(shape: tuple[int, int, int]) -> None:
    found = measure(np.full(shape, 120, np.uint8))
    assert all(np.isfinite(list(found.values())))
    assert rate(found)["sharpness"] == 0  # nothing in it could be sharp
