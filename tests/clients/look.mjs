// Opens a page in headless Chromium, in the light and the dark scheme, and prints the results of its checks as JSON.
// usage: CHROMIUM=PROGRAM look.mjs PAGE SCREENSHOT-PREFIX
import { createRequire } from "node:module";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const [page_path, prefix] = process.argv.slice(2);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const address = pathToFileURL(page_path).href;
const profile = mkdtempSync(join(tmpdir(), "look-"));
const args = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
  "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const seen = {};

for (const scheme of ["light", "dark"]) {
  const browser = await chromium.launchPersistentContext(join(profile, scheme), {
    executablePath: process.env.CHROMIUM, args, colorScheme: scheme,
    viewport: { width: 1128, height: 900 },
  });
  try {
    const page = await browser.newPage();
    const said = [], requests = [];
    page.on("console", (message) => said.push(`${message.type()}: ${message.text()}`));
    page.on("pageerror", (error) => said.push(`error: ${error.message}`));
    page.on("request", (request) => requests.push(request.url()));
    await page.goto(address);
    await page.evaluate(axe);
    const { violations, passes } = await page.evaluate(() => axe.run(document, {
      runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"] }));
    const brief = (results) => results.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(" ")}`);
    const landmarks = await page.evaluate(() =>
      ["header", "nav", "main", "footer"].map((name) => document.querySelectorAll(`body > ${name}`).length));
    // axe does not check SVG: compare each text with what is under it, and each bar with the background.
    const picture = await page.evaluate(() => {
      const part = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
      const light = (colour) => {
        const [red, green, blue] = colour.match(/[\d.]+/g).map((value) => part(value / 255));
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
      };
      const ratio = (one, other) => {
        const [darker, lighter] = [light(one), light(other)].sort((a, b) => a - b);
        return (lighter + 0.05) / (darker + 0.05);
      };
      const fill = (element) => getComputedStyle(element).fill;
      const paper = fill(document.querySelector("svg.timeline > rect"));
      const life = document.querySelector("svg.timeline .life");
      const under = (text) => (text.classList.contains("on-life") ? fill(life) : paper);
      const least = (ratios) => Math.min(...ratios);
      return {
        texts: least([...document.querySelectorAll("svg.timeline text")].map((text) => ratio(fill(text), under(text)))),
        bars: least([...document.querySelectorAll("svg.timeline rect[class]:not(.life)")].map((bar) => ratio(fill(bar), paper))),
      };
    });
    await page.keyboard.press("Tab");
    const first = await page.evaluate(() => document.activeElement.textContent);
    await page.keyboard.press("Enter");
    const skipped_to = await page.evaluate(() => document.activeElement.id);
    const stops = [];
    for (let stop = 0; stop < 12; stop += 1) {
      await page.keyboard.press("Tab");
      stops.push(await page.evaluate(() => {
        const { outlineStyle } = getComputedStyle(document.activeElement);
        return `${document.activeElement.tagName.toLowerCase()} ${outlineStyle}`;
      }));
      if (stops.at(-1).startsWith("body")) break;
    }
    await page.evaluate(() => { document.activeElement.blur(); scrollTo(0, 0); });
    await page.screenshot({ path: `${prefix}-${scheme}.png`, fullPage: true });
    await page.setViewportSize({ width: 360, height: 740 });
    const overflows = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
    await page.screenshot({ path: `${prefix}-${scheme}-narrow.png` });
    const fetched = requests.filter((url) => url !== address && !url.startsWith("data:"));
    const contrast = passes.some(({ id }) => id === "color-contrast");
    seen[scheme] = { said, fetched, violations: brief(violations), contrast, picture, landmarks, first,
      skipped_to, stops, overflows, title: await page.title() };
  } finally {
    await browser.close();
  }
}
rmSync(profile, { recursive: true, force: true });
console.log(JSON.stringify(seen));
