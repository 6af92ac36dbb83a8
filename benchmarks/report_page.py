"""Measure how large the report of many masks is, and how fast it is in Chromium.

    python -m benchmarks.report_page --masks 2000 --images 500 --out out/report_benchmark

The table has pieces of scikit-image's photographs with masks of random shape (parts and holes) and random scores,
written by the library in two nights; a tenth of the masks changes in the second night. The command prints JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

from stable_sam.config import RunConfig
from stable_sam.identity import ModelIdentity
from stable_sam.records import Prompt, RefinedMask, Route
from stable_sam.refining.shard_job import refine_shard
from stable_sam.report.write import write_report
from stable_sam.rle import encode_mask
from stable_sam.runs.plan import plan_run
from stable_sam.runs.publish import publish
from stable_sam.runs.request import RunRequest
from stable_sam.storage.files import write_bytes
from stable_sam.storage.uris import join

MODEL = ModelIdentity(model_id="random shapes", weights_sha256="0" * 64, dtype="float32")
PHOTOGRAPHS = ("astronaut", "cat", "chelsea", "coffee", "rocket", "motorcycle_left")
CATEGORIES = ("person", "car", "dog", "chair", "bottle", "bird", "boat", "cup", "bicycle", "<b>unknown</b>")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class RandomShapes:
    """Answers each prompt with a shape about its box; the shape is that of the prompt's id and of the night."""

    identity = MODEL

    def refine_image(self, image: np.ndarray, prompts: list[Prompt]) -> list[RefinedMask]:
        """One mask for each prompt; every fortieth fails."""
        return [self._mask(image.shape[:2], prompt) for prompt in prompts]

    def _mask(self, hw: tuple[int, ...], prompt: Prompt) -> RefinedMask:
        noise = np.random.default_rng([int(prompt.prompt_id), *map(int, prompt.box_xyxy or ())])
        if noise.random() < 0.025 or prompt.box_xyxy is None:
            reason = "box outside the image: expected 0 <= x0 < x1, got <b>none</b>"
            return RefinedMask(prompt_id=prompt.prompt_id, status="failed", error=reason, route="reject")
        x0, y0, x1, y1 = prompt.box_xyxy
        coarse = noise.standard_normal((hw[0] // 16, hw[1] // 16)).astype(np.float32)
        field = cv2.resize(cv2.GaussianBlur(coarse, (0, 0), 1.0), hw[::-1], interpolation=cv2.INTER_CUBIC)
        y, x = np.mgrid[: hw[0], : hw[1]]
        away = ((x - (x0 + x1) / 2) / (x1 - x0)) ** 2 + ((y - (y0 + y1) / 2) / (y1 - y0)) ** 2
        mask = encode_mask(field / field.std() * 0.08 + 0.22 - away > 0)
        good = noise.beta(6, 2)
        iou, stability, border = (float(np.clip(good + noise.normal(0, 0.08), 0, 1)) for _ in range(3))
        route: Route = "accept" if min(iou, stability) > 0.75 else "review" if iou > 0.4 else "reject"
        return RefinedMask(
            prompt_id=prompt.prompt_id, status="ok", mask_size=mask.size_hw, mask_counts=mask.counts, area=mask.area,
            bbox_xywh=mask.bbox_xywh, predicted_iou=iou, stability_score=border, prompt_stability=stability,
            dsp_weight=float(noise.random()), box_agreement=float(noise.beta(5, 2)), quality=float(good),
            true_iou=float(np.clip(good + noise.normal(0, 0.05), 0, 1)),
            route=route, route_reason=f"predicted_iou {iou:.3f}; prompt_stability {stability:.3f}",
        )  # fmt: skip


def write_images(folder: str, count: int, side: int) -> None:
    """Pieces of photographs, `side` pixels wide, as JPEG."""
    import skimage.data

    photographs = [getattr(skimage.data, name) for name in PHOTOGRAPHS if hasattr(skimage.data, name)]
    pictures = [photograph() for photograph in photographs]
    noise = np.random.default_rng(0)
    for number in range(count):
        picture = Image.fromarray(pictures[number % len(pictures)])
        width = noise.uniform(0.4, 0.9) * min(picture.width, picture.height * 4 / 3)
        left, top = noise.uniform(0, picture.width - width), noise.uniform(0, picture.height - width * 3 / 4)
        piece = picture.resize((side, side * 3 // 4), box=(left, top, left + width, top + width * 3 / 4))
        file = io.BytesIO()
        piece.save(file, "JPEG", quality=90)
        write_bytes(join(folder, f"{number:05}.jpg"), file.getvalue())


def prompts(folder: str, masks: int, images: int, side: int, night: int) -> list[Prompt]:
    """Boxes; a tenth of them is another one in the second night."""
    found = []
    for number in range(masks):
        noise = np.random.default_rng((number, night if number % 10 == 0 else 0))
        width, height = noise.uniform(0.1, 0.5) * side, noise.uniform(0.1, 0.5) * side * 3 / 4
        x0, y0 = noise.uniform(0, side - width), noise.uniform(0, side * 3 / 4 - height)
        found.append(
            Prompt(
                prompt_id=f"{number:06}", image_id=str(number % images),
                image_uri=join(folder, f"{number % images:05}.jpg"),
                box_xyxy=(round(x0), round(y0), round(x0 + width), round(y0 + height)),
                category=CATEGORIES[int(noise.integers(len(CATEGORIES)))], score=round(float(noise.beta(4, 2)), 3),
            )
        )  # fmt: skip
    return found


def write_table(out: Path, masks: int, images: int, side: int) -> str:
    """The table of two nights; returns its URI."""
    folder, table = str(out / "images"), str(out / "table")
    write_images(folder, images, side)
    for night in (0, 1):
        manifest = plan_run(
            prompts(folder, masks, images, side, night),
            RunRequest(
                annotations_uri=str(out / "weak.json"),
                images_uri=folder,
                output_uri=table,
                config=RunConfig(),
                logical_date=f"2026-11-2{night}",
            ),
            MODEL,
        )
        assert manifest is not None
        for shard in manifest.shards:
            refine_shard(RandomShapes(), manifest, shard)
        publish(manifest)
    return table


def measure(page: Path, shots: Path | None) -> dict[str, float]:
    """Milliseconds in Chromium: first paint, gallery drawn, and the slowest of several filter and sort changes."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        tab = browser.new_page(viewport={"width": 1440, "height": 900})
        tab.goto(page.as_uri(), wait_until="load")
        tab.wait_for_timeout(500)
        times: dict[str, float] = tab.evaluate(
            """() => {
                const [navigation] = performance.getEntriesByType("navigation");
                const paint = performance.getEntriesByName("first-contentful-paint")[0];
                return { first_paint_ms: paint.startTime, interactive_ms: navigation.domInteractive,
                         loaded_ms: navigation.loadEventEnd };
            }"""
        )
        times["change_ms"] = tab.evaluate(
            """async () => {
                let slowest = 0;
                const painted = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
                document.getElementById("gallery").scrollIntoView();
                for (const key of ["2", "s", "s", "3", "s", "a", "1", "s"]) {
                    await painted();
                    const start = performance.now();
                    document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
                    await painted();
                    slowest = Math.max(slowest, performance.now() - start);
                }
                return slowest;
            }"""
        )
        for key in ("2", "j"):
            tab.keyboard.press(key)
        start = time.perf_counter()
        tab.keyboard.press("Enter")
        tab.wait_for_selector("#stage image", state="attached")
        times["large_view_ms"] = 1000 * (time.perf_counter() - start)
        if shots:
            tab.screenshot(path=shots / "many-large.png")
            tab.keyboard.press("Escape")
            tab.keyboard.press("a")
            tab.screenshot(path=shots / "many-gallery.png")
            tab.evaluate("scrollTo(0, 0)")
            tab.screenshot(path=shots / "many-top.png")
        browser.close()
    return times


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=int, default=2000)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--side", type=int, default=1280)
    parser.add_argument("--out", type=Path, default=Path("out/report_benchmark"))
    parser.add_argument("--shots", type=Path, help="Folder for screenshots.")
    parser.add_argument("--keep", action="store_true", help="Take the table of the last time.")
    given = parser.parse_args()
    table = str(given.out / "table")
    if not given.keep:
        shutil.rmtree(given.out, ignore_errors=True)
        table = write_table(given.out, given.masks, given.images, given.side)
    start, page = time.perf_counter(), (given.out / "report.html").absolute()
    shown = write_report(table, str(page))
    seconds = time.perf_counter() - start
    figures = {"masks": shown, "images": given.images, "MB": page.stat().st_size / 1e6, "written_s": seconds}
    print(json.dumps({name: round(value, 2) for name, value in (figures | measure(page, given.shots)).items()}))


if __name__ == "__main__":
    main()
