"""The report as people use it: opened from a file in Chromium, without a network."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from stable_sam.records import Prompt
from stable_sam.report.write import write_report
from stable_sam.rle import encode_mask
from tests.report_table import answer, publish_night

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HOSTILE = "</script><img src=x onerror=alert(1)>"
WIDTH, HEIGHT = 96, 72
ROUTES = {"accept": 9, "review": 70, "reject": 5, "failed": 3}

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine (Debian: apt install chromium)")


def rings(phase: int) -> np.ndarray:
    """A ring with a hole, and a part of its own in the corner."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    away = np.hypot((x - 45 - phase % 5) / 1.3, y - 36)
    return ((away < 26) & (away > 11)) | ((x > 85) & (y < 9))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    prompts, answers = [], []
    outcomes = [outcome for outcome, count in ROUTES.items() for _ in range(count)]
    noise = np.random.default_rng(0)
    (root / "images").mkdir()
    for image in range(6):
        coarse = noise.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((WIDTH, HEIGHT)).save(root / f"images/photo{image}.png")
    for k, outcome in enumerate(outcomes):
        name = f"p{k:03}"
        prompts.append(
            Prompt(
                prompt_id=name,
                image_id=str(k % 6),
                image_uri=str(root / f"images/photo{k % 6}.png"),
                box_xyxy=(15, 8, 88, 64),
                points_xy=((45, 12), (45, 36)),
                point_labels=(1, 0),
                category=HOSTILE if k % 7 == 0 else "ring",
            )
        )
        if outcome == "failed":
            answers.append(answer(name, status="failed", error=f"{HOSTILE} is no image", route="reject"))
        else:
            scores = {"predicted_iou": 0.4 + k / 300, "prompt_stability": 0.9 - k / 400}
            answers.append(answer(name, rings(k), route=outcome, true_iou=k / 100, **scores))
    out = root / "report.html"
    write_report(publish_night(root, prompts, answers), str(out))
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield started
        started.close()


OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, report: Path) -> Iterator[OpenPage]:
    """Open the report; at the end it must have asked for nothing and complained of nothing."""
    troubles: list[str] = []
    tabs = []

    def opened(**settings: Any) -> Page:
        tab = browser.new_page(viewport={"width": 1280, "height": 900}, **settings)
        tabs.append(tab)
        tab.on("console", lambda message: troubles.append(message.text))
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.on("dialog", lambda dialog: troubles.append(dialog.message))
        tab.on("request", lambda request: troubles.append(request.url))
        tab.goto(report.as_uri())
        return tab

    yield opened
    for tab in tabs:
        tab.close()
    asked = [trouble for trouble in troubles if not trouble.startswith("data:")]
    assert asked == [report.as_uri()] * len(tabs)


def ids(page: Page) -> list[str]:
    found: list[str] = page.locator(".card").evaluate_all("cards => cards.map(card => card.dataset.id)")
    return found


def focused(page: Page) -> str:
    found: str = page.evaluate("document.activeElement.closest('.card')?.dataset.id ?? ''")
    return found


def test_filters_and_search_change_what_is_shown(open_page: OpenPage) -> None:
    page = open_page()
    total = sum(ROUTES.values())
    assert page.locator("#count").inner_text() == f"{total} prompts"
    page.get_by_label("reject 5").check(force=True)
    assert page.locator("#count").inner_text() == f"5 of {total} prompts"
    assert page.locator(".card").count() == page.locator(".card.reject").count() == 5
    page.keyboard.press("4")
    assert page.locator(".card").count() == page.locator(".card.failed").count() == 3
    page.keyboard.press("a")
    page.get_by_role("combobox", name="Category").select_option(label=f"{HOSTILE} (13)")
    assert page.locator(".card").count() == 13
    page.get_by_role("searchbox", name="Find").fill("P02")
    assert ids(page) == ["p021", "p028"]
    page.get_by_role("searchbox", name="Find").fill("nothing is called that")
    page.get_by_role("button", name="Show all").click()
    assert page.locator("#count").inner_text() == f"{total} prompts"
    page.get_by_role("searchbox", name="Find").fill("photo3")
    assert set(ids(page)) == {f"p{k:03}" for k in range(3, total, 6)}


def test_sorts(open_page: OpenPage) -> None:
    page = open_page()
    assert page.locator(".card").first.get_attribute("class") == "card failed"
    page.get_by_role("combobox", name="Sort").select_option("predicted_iou")
    assert ids(page)[:3] == ["p000", "p001", "p002"]
    page.get_by_role("button", name="lowest first").nth(0).click()
    assert page.get_by_role("combobox", name="Sort").input_value() == "prompt_stability"
    assert ids(page)[:3] == ["p083", "p082", "p081"]
    page.get_by_role("combobox", name="Sort").select_option("random")
    drawn = ids(page)
    assert drawn != sorted(drawn)
    again = open_page()
    again.get_by_role("combobox", name="Sort").select_option("random")
    assert ids(again) == drawn


def test_cards_are_made_as_they_are_needed(open_page: OpenPage) -> None:
    page = open_page()
    assert page.locator(".card").count() == 60
    page.locator(".card").nth(0).scroll_into_view_if_needed()
    page.wait_for_selector(".card svg image")
    assert page.locator(".card svg image").count() < 60
    page.locator(".card").last.scroll_into_view_if_needed()
    page.locator(".card").nth(sum(ROUTES.values()) - 1).wait_for(state="attached")


def test_keys_lead_through_gallery_and_large_view(open_page: OpenPage) -> None:
    page = open_page()
    order = ids(page)
    for key, place in [("j", 0), ("j", 1), ("ArrowRight", 2), ("k", 1), ("ArrowLeft", 0), ("ArrowDown", 4)]:
        page.keyboard.press(key)
        assert focused(page) == order[place], key
    page.keyboard.press("Enter")
    large = page.get_by_role("dialog")
    assert "5 of 87" in large.inner_text()
    page.keyboard.press("j")
    page.keyboard.press("ArrowRight")
    assert "7 of 87" in large.inner_text()
    assert order[6] in large.inner_text()
    page.keyboard.press("Escape")
    # The browser tells the page of the closed dialog a moment later.
    page.wait_for_function("id => document.activeElement.closest('.card')?.dataset.id === id", arg=order[6])
    page.keyboard.press("?")
    assert "next and previous prompt" in page.get_by_role("dialog").inner_text()
    page.get_by_label("letters, digits and signs act as keys").uncheck()
    page.keyboard.press("?")
    assert page.get_by_role("dialog").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") != "find"


def picture_of(page: Page) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(page.locator("#stage").screenshot())).convert("RGB")).astype(int)


@pytest.mark.parametrize("zoom", [0, 3])
def test_the_mask_is_drawn_where_it_is(open_page: OpenPage, zoom: int) -> None:
    """Pixels of the screen that change with the mask, against the mask of the table at their places."""
    page = open_page()
    page.get_by_role("searchbox", name="Find").fill("p042")
    page.keyboard.press("Tab")
    page.locator(".card .open").click()
    page.keyboard.press("b")
    for _ in range(zoom):
        page.keyboard.press("+")
    with_mask = picture_of(page)
    page.keyboard.press("m")
    drawn = np.abs(with_mask - picture_of(page)).sum(axis=2) > 30
    matrix = page.evaluate(
        """() => {
            const box = document.getElementById("stage").getBoundingClientRect();
            const { a, d, e, f } = document.querySelector("#stage svg").getScreenCTM();
            return [a, d, e - box.left, f - box.top];
        }"""
    )
    rows, columns = np.mgrid[: drawn.shape[0], : drawn.shape[1]] + 0.5
    x = np.floor((columns - matrix[2]) / matrix[0]).astype(int)
    y = np.floor((rows - matrix[3]) / matrix[1]).astype(int)
    inside = (x >= 0) & (x < WIDTH) & (y >= 0) & (y < HEIGHT)
    true = inside & rings(42)[y.clip(0, HEIGHT - 1), x.clip(0, WIDTH - 1)]
    assert true.sum() > 20_000
    assert (drawn & true).sum() / (drawn | true).sum() > 0.95


def test_outlines_are_exact(browser: Browser) -> None:
    """An outline filled by the even-odd rule is the mask again: holes, parts, pixels that touch at corners."""
    noise = np.random.default_rng(1)
    masks = [noise.random((height, width)) < share for height, width, share in [(1, 1, 1), (7, 5, 0.5), (40, 30, 0.05)]]
    masks += [noise.random((33, 47)) < share for share in (0, 0.2, 0.5, 0.8, 1)]
    masks += [np.indices((12, 13)).sum(axis=0) % 2 == 0, rings(0), np.ones((5, 4), bool)]
    encoded = [{"size": rle.size_hw, "counts": rle.counts} for rle in map(encode_mask, masks)]
    page = browser.new_page()
    page.add_script_tag(content=(files("stable_sam.report") / "page/masks.js").read_text())
    filled = page.evaluate(
        """masks => masks.map((mask) => {
            const [height, width] = mask.size, canvas = new OffscreenCanvas(width, height).getContext("2d");
            canvas.fill(new Path2D(outline(mask)), "evenodd");
            const { data } = canvas.getImageData(0, 0, width, height);
            return Array.from({ length: width * height }, (_, k) => data[4 * k + 3]);
        })""",
        encoded,
    )
    page.close()
    for mask, alpha in zip(masks, filled, strict=True):
        assert np.array_equal(np.reshape(alpha, mask.shape), mask * 255)


def test_light_and_dark(open_page: OpenPage) -> None:
    def colors(page: Page) -> list[str]:
        names = ["body", ".panel", "h2", ".quiet"]
        found: list[str] = page.evaluate(
            """names => names.flatMap((name) => {
                const style = getComputedStyle(document.querySelector(name));
                return [style.color, style.backgroundColor];
            })""",
            names,
        )
        return found

    light, dark = open_page(color_scheme="light"), open_page(color_scheme="dark")
    asked_light, asked_dark = colors(light), colors(dark)
    assert asked_light[:4] != asked_dark[:4]
    light.get_by_role("button", name="Dark").click()
    dark.keyboard.press("t")
    assert (colors(light), colors(dark)) == (asked_dark, asked_light)


CONTRAST = """() => {
    const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const luminance = (color) => {
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((value) => value / 255)
            .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const color = getComputedStyle(at).backgroundColor;
            if (color !== "rgba(0, 0, 0, 0)") return color;
        }
        return "white";
    };
    const found = {};
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
        if (!own || !element.checkVisibility() || element.closest("svg, .unseen")) continue;
        const [a, b] = [luminance(getComputedStyle(element).color), luminance(behind(element))];
        found[`${element.tagName}.${element.className}`] = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(open_page: OpenPage, scheme: str) -> None:
    page = open_page(color_scheme=scheme)
    contrasts = page.evaluate(CONTRAST)
    page.locator(".card .open").nth(5).click()
    contrasts |= page.evaluate(CONTRAST)
    assert len(contrasts) > 25
    assert {name: ratio for name, ratio in contrasts.items() if ratio < 4.5} == {}


def test_hostile_text_is_text(open_page: OpenPage) -> None:
    page = open_page()
    page.keyboard.press("4")
    assert page.locator(".card .reason").first.inner_text().startswith(HOSTILE)
    assert page.locator(".card b", has_text=HOSTILE).count() == 1
    page.locator(".card .open").first.click()
    assert page.get_by_role("dialog").locator("p", has_text=f"{HOSTILE} is no image").count() == 1
    assert page.locator("img[src='x']").count() == 0
    assert page.get_by_role("rowheader", name=HOSTILE).count() == 1


def test_landmarks_and_names(open_page: OpenPage) -> None:
    page = open_page()
    for role in ("banner", "navigation", "main", "search", "contentinfo"):
        assert page.get_by_role(role).count() == 1, role
    unnamed = page.locator("button, select, input, [role=img], [role=region]").evaluate_all(
        """elements => elements.filter((element) => element.checkVisibility() &&
            !(element.textContent.trim() || element.ariaLabel || element.labels?.length ||
              element.getAttribute("aria-labelledby"))).map((element) => element.outerHTML)"""
    )
    assert unnamed == []
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.get_by_role("img", name="risk against coverage").count() == 1


def test_it_prints_in_light_colours_without_buttons(open_page: OpenPage) -> None:
    page = open_page(color_scheme="dark")
    page.emulate_media(media="print")
    assert not page.get_by_role("searchbox", name="Find").is_visible()
    assert page.locator(".card").first.is_visible()
    assert page.evaluate("getComputedStyle(document.querySelector('.panel')).backgroundColor") == "rgb(255, 255, 255)"
    assert page.pdf()[:5] == b"%PDF-"
