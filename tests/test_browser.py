"""The page in a real browser: Chromium opens it from disk, and `faults` looks for what is wrong.

`faults` is run on the good page, where it must find nothing, and on pages spoiled one way each,
where it must find just that.
"""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from batchnorm.report import render

pytestmark = pytest.mark.browser

MADE_UP = Path(__file__).with_name("run_folder")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
SETTLED = "body[data-charts=settled]"

# Color as the browser paints it, so that any way of writing it is understood.
LOOK = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const shine = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const under = node => {
    for (let at = node; at instanceof Element; at = at.parentElement) {
      const color = rgba(getComputedStyle(at).backgroundColor);
      if (color[3] > 0) return color;
    }
    return [255, 255, 255, 255];
  };
  const texts = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement, words = walk.currentNode.textContent.trim();
    const box = node.getBoundingClientRect();
    if (!words || !box.width || node.closest('script, style, noscript, .hidden, .skip')) continue;
    const style = getComputedStyle(node), drawn = node instanceof SVGElement;
    const ink = rgba(drawn ? style.fill : style.color), page = under(node);
    const [dark, light] = [shine(ink), shine(page)].sort((a, b) => a - b);
    texts.push({words, drawn, ink: ink.join(), ratio: (light + .05) / (dark + .05)});
  }
  const charts = [...document.querySelectorAll('.chart')].map(place => {
    const svg = place.querySelector('svg'), box = svg?.getBoundingClientRect();
    const marks = [...place.querySelectorAll('[class*=role-mark] :is(path, line, text)')];
    const seen = marks.filter(mark => {
      const {width, height} = mark.getBoundingClientRect();
      return width + height > 0;
    });
    const inside = place.getBoundingClientRect();
    const words = [...place.querySelectorAll('svg text')]
      .filter(text => text.textContent.trim() && getComputedStyle(text).opacity > 0)
      .map(text => {
        const {left, right, top, bottom} = text.getBoundingClientRect();
        return {words: text.textContent, left, right, top: top + 3, bottom: bottom - 3};
      });
    const cut = words.filter(at => at.left < inside.left - 1 || at.right > inside.right + 1
      || at.words.includes('\u2026')).map(at => at.words);
    const apart = (a, b) => a.right < b.left || b.right < a.left || a.bottom < b.top || b.bottom < a.top;
    const crowded = words.flatMap((a, i) => words.slice(i + 1).filter(b => !apart(a, b))
      .map(b => `${a.words} / ${b.words}`));
    return {cut, crowded, name: place.id, marks: seen.length, width: box?.width ?? 0, height: box?.height ?? 0,
      spills: box ? box.right - inside.right : 0, spoken: place.closest('[role=img]')?.ariaLabel ?? ''};
  });
  return {texts, charts, page: rgba(getComputedStyle(document.body).backgroundColor).join(),
    wide: document.documentElement.scrollWidth, window: innerWidth};
}"""


# What no one should have to read: a value of a program, or more digits than are known.
RAW = re.compile(r"\b(?:NaN|undefined|null|None|True|False)\b|\[object|[\[{]['\"\d]|\d\.\d{6,}")


def need(chromium, demanded):
    """Skip without Chromium, or fail where the environment demands these tests."""
    reason = "no Chromium here (Debian: apt-get install chromium)"
    if not chromium and demanded == "1":
        pytest.fail(f"{reason}, and BATCHNORM_REQUIRE_BROWSER=1 demands it")
    if not chromium:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def chromium():
    need(CHROMIUM, os.environ.get("BATCHNORM_REQUIRE_BROWSER"))
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "run"
    return render(shutil.copytree(MADE_UP, folder))


@pytest.fixture
def visit(chromium):
    """Open a page file; what the browser complains of and asks for is in ``.heard``."""
    contexts = []

    def opened(path, width=1200, scheme="light"):
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        contexts.append(context)
        page = context.new_page()
        page.heard = heard = []
        page.on("console", lambda message: heard.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: heard.append(f"page error: {error}"))
        page.on("request", lambda request: heard.append(f"request: {request.url}"))
        context.route(re.compile("^https?:"), lambda route: route.abort())
        page.goto(path.as_uri())
        page.wait_for_selector(SETTLED, timeout=20_000)
        heard.remove(f"request: {path.as_uri()}")
        return page

    yield opened
    for context in contexts:
        context.close()


def faults(page):
    """What is wrong with an open page, a line each."""
    look = page.evaluate(LOOK)
    found = list(page.heard)
    found += [
        f"too faint: {t['words'][:40]} ({t['ratio']:.1f})"
        for t in look["texts"]
        if t["ratio"] < 4.5
    ]
    found += [f"raw: {raw[0]}" for t in look["texts"] if (raw := RAW.findall(t["words"]))]
    if look["wide"] > look["window"]:
        found.append(f"scrolls sideways: {look['wide']} in {look['window']}")
    for chart in look["charts"]:
        if chart["marks"] < 3 or chart["width"] < 200 or chart["height"] < 100:
            found.append(f"not drawn: {chart['name']}")
        if chart["spills"] > 1:
            found.append(f"spills over: {chart['name']}")
        found += [f"cut in {chart['name']}: {words}" for words in chart["cut"]]
        found += [f"one on the other in {chart['name']}: {words}" for words in chart["crowded"]]
        if len(chart["spoken"]) < 20:
            found.append(f"no words for: {chart['name']}")
    if not look["charts"]:
        found.append("no charts")
    return found


def spoiled(good, tmp_path, old, new, count=1):
    text = good.read_text()
    assert old in text, f"nothing to spoil: {old}"
    path = tmp_path / "spoiled.html"
    path.write_text(text.replace(old, new, count))
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 390, 768, 1200])
def test_the_page_is_without_fault(visit, good, width, scheme):
    assert faults(visit(good, width, scheme)) == []


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """The page of all studies, from the rows that docs/claims.md comes from."""
    from batchnorm.studies import remeasure

    kept = MADE_UP.parent.parent / "docs/claims/full"
    return remeasure(shutil.copytree(kept, tmp_path_factory.mktemp("claims") / "full")).report


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 390, 800, 1280])
def test_the_page_of_all_studies_is_without_fault(visit, studied, width, scheme):
    page = visit(studied, width, scheme)
    assert page.locator(".chart").count() > 50
    # A learning rate, a power of ten on an axis, and `bias=False`: meant as they stand.
    meant = {"raw: 0.000316", "raw: 0.000001", "raw: False"}
    assert [fault for fault in faults(page) if fault not in meant] == []


WITHOUT_POLICY = '<meta http-equiv="Content-Security-Policy"', '<meta name="was-a-policy"'


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("<main>", "<main><script>console.error('oh')</script>", "console: oh"),
        ("<main>", "<main><script>throw Error('oh')</script>", "page error: oh"),
        ('"mark": {', '"mark": 7, "was": {', "not drawn: made_up-slider"),
        ('"layer": [', '"layer": [], "was": [', "not drawn: made_up-slider"),
        ("--muted: #57606c", "--muted: #a8b0bb", "too faint: batchnorm 0.0.0"),
        ("<main>", "<main><div style='width: 500px'>wide</div>", "scrolls sideways: 5"),
        (
            ".chart { width: 100%;",
            ".chart svg { width: 700px; max-width: none !important; } .chart {",
            "spills",
        ),
        ('"title": "step"', '"title": "' + "step " * 20 + '"', "cut in made_up-curves: step step"),
        ('"dy": -46', '"dy": 33', "one on the other in made_up-bars: "),
        ('aria-label="Made-up learning', 'aria-label="" title="', "no words for: made_up-curves"),
        ("2.00×", "2.0000001×", "raw: 2.0000001"),
        ("Made up: steps says", "Made up: [0, 1] says", "raw: [0"),
        ("Made up: steps says", "Made up: NaN says", "raw: NaN"),
    ],
)
def test_each_fault_is_found(visit, good, tmp_path, old, new, fault):
    found = faults(visit(spoiled(good, tmp_path, old, new), 390))
    assert any(line.startswith(fault) for line in found), found


def test_a_request_is_found_and_the_page_itself_refuses_it(visit, good, tmp_path):
    path = spoiled(good, tmp_path, "<main>", "<main><img alt='' src='https://example.com/x.png'>")
    asked, refusal = "request: https://example.com/x.png", "violates the following Content Security"
    found = faults(visit(path))
    assert asked in found
    assert any(refusal in line for line in found)
    unguarded = faults(visit(spoiled(path, tmp_path, *WITHOUT_POLICY)))
    assert asked in unguarded
    assert not any(refusal in line for line in unguarded)


def unfolded(page):
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    page.wait_for_function(
        "[...document.querySelectorAll('figure details')].every(one => one.querySelector('table'))"
    )
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1200])
def test_what_is_folded_is_without_fault_too(visit, good, width, scheme):
    page = unfolded(visit(good, width, scheme))
    assert page.get_by_role("rowheader").filter(has_text="Measure 8").count() == 1
    assert faults(page) == []


def test_a_line_ends_between_the_words_of_a_command(visit, good, tmp_path):
    def broken(path):
        page = visit(path, 230)
        code = page.locator("footer pre code")
        assert code.inner_text() == "batchnorm study --model made_up:network", "as it is copied"
        words = page.locator("footer pre .word").all()
        return [
            word.inner_text()
            for word in words
            if word.evaluate("one => one.getClientRects().length > 1 || one.offsetHeight > 30")
        ]

    assert broken(good) == []
    spoil = ".word { display: inline-block; max-width: 100%; }"
    assert "--model" in broken(spoiled(good, tmp_path, spoil, ""))


def test_many_measures_are_unfolded_by_the_keyboard(visit, good):
    page = visit(good)
    row = page.locator("#many tbody tr").last
    assert not row.is_visible()
    page.locator("#many .fold > summary").press("Enter")
    assert row.is_visible()


def test_the_numbers_of_a_slider_have_no_bins_in_them(visit, good):
    page = unfolded(visit(good))
    table = page.locator("figure:has(#many-slider) details table")
    assert table.locator("th").all_inner_texts()[:4] == ["arm", "layer", "step", "mean"]
    cells = table.locator("td").all_inner_texts()
    assert len(cells) == 12 * 8
    assert all(len(cell) < 20 for cell in cells), cells


def inks(page):
    look = page.evaluate(LOOK)
    return look["page"], {text["ink"] for text in look["texts"] if text["drawn"]}


def test_both_schemes_differ_and_a_change_of_scheme_reaches_the_charts(visit, good):
    page = visit(good)
    light, light_inks = inks(page)
    page.emulate_media(color_scheme="dark")
    dark, dark_inks = inks(page)
    assert light != dark
    assert light_inks
    assert dark_inks
    assert not light_inks & dark_inks, "no text of a chart keeps its color"
    assert (dark, dark_inks) == inks(visit(good, scheme="dark")), "as if opened in the dark"
    assert faults(page) == []


def test_on_paper_the_page_is_light(visit, good):
    page = visit(good, 768, "dark")
    page.emulate_media(media="print")
    assert page.locator("#many tbody tr").last.is_visible(), "nothing that was measured is folded"
    assert not page.locator("summary", has_text="The numbers").first.is_visible()
    paper = inks(page)
    assert faults(page) == []
    page = visit(good, 768, "light")
    page.evaluate("document.querySelectorAll('.fold').forEach(one => { one.open = true; })")
    assert paper == inks(page)


def test_the_charts_next_to_what_is_read_are_drawn_first(chromium, good):
    page = chromium.new_context().new_page()
    page.goto(f"{good.as_uri()}#many")
    page.wait_for_selector(SETTLED)
    order = page.evaluate("performance.getEntriesByType('mark').map(mark => mark.name)")
    assert order[:2] == ["many-slider", "many-sweep"]
    assert sorted(order) == sorted(
        page.evaluate("[...document.querySelectorAll('.chart')].map(c => c.id)")
    )
    page.context.close()


def test_a_chart_with_a_color_of_its_own_would_be_noticed(visit, good, tmp_path):
    path = spoiled(
        good, tmp_path, 'axis: {labelColor: "var(--muted)"', 'axis: {labelColor: "#767676"'
    )
    page = visit(path)
    light_inks = inks(page)[1]
    page.emulate_media(color_scheme="dark")
    assert light_inks & inks(page)[1]


def test_charts_follow_the_width(visit, good):
    page = visit(good)
    page.set_viewport_size({"width": 360, "height": 800})
    page.wait_for_function(
        "[...document.querySelectorAll('.chart svg')].every(s => s.getBoundingClientRect().width < 340)"
    )
    assert faults(page) == []


def focused(page, times):
    for _ in range(times):
        page.keyboard.press("Tab")
        yield page.evaluate(
            """() => {
              const at = document.activeElement, style = getComputedStyle(at);
              return [at.textContent.trim().slice(0, 40), parseFloat(style.outlineWidth) > 0];
            }"""
        )


def test_the_keyboard_reaches_everything_in_the_order_of_the_page(visit, good):
    order = [
        "Skip to the verdicts",
        "The whole message",  # why several do not apply
        "Made-up claim that batch norm speeds som",
        "Made-up claim that does not apply",
        "Made-up claim whose study failed",
        "Made-up claim with many measures",
        "Made-up claim that nothing came out abou",
        "Made-up claim that has no place",
        "Made-up claim that has no place either",
        "",  # the slider
        "The numbers of Made-up distribution over",
        "All verdicts",
        "The numbers of Made-up learning curves",
        "The numbers of Made-up accuracy against ",
        "The numbers of Made-up intervals",
        "Made-up distribution over steps",
        "Every measure 5 measures: 1 supported, 1",
        "batchnorm study made_up --out runs/study",
        "All verdicts",  # of what does not apply
        "All verdicts",
        "The whole message",
        "All verdicts",
        "",  # the other slider
        "12",  # and its menu
        "The numbers of Made-up distributions, tw",
        "The numbers of Made-up depths",
        "Every measure 8 measures: 3 supported, 1",
        "batchnorm study many --out runs/study-ma",
        "All verdicts",
        "batchnorm study silent --out runs/study-",
        "All verdicts",
        "all verdicts",
        "All verdicts",
        "all verdicts",
        "batchnorm study --model made_up:network",
    ]
    reached = list(focused(visit(good), len(order)))
    assert [words for words, _ in reached] == order
    assert all(visible for _, visible in reached), "where the focus is can be seen"


def test_a_slider_is_moved_by_the_keyboard_and_has_a_name(visit, good):
    page = visit(good)
    group = page.get_by_role("group", name="Made-up distribution over steps")
    slider = group.get_by_role("slider", name="step")
    bars = page.locator("#made_up-slider .mark-rect path")
    before = bars.nth(0).get_attribute("d")
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "was => document.querySelector('#made_up-slider .mark-rect path').getAttribute('d') != was",
        arg=before,
    )
    assert slider.input_value() == "10"
    assert slider.count() == 1, "and is part of what it moves"
    assert faults(page) == []


def test_the_order_of_the_keyboard_can_be_wrong(visit, good, tmp_path):
    path = spoiled(good, tmp_path, '<a href="#not_for_it"', '<a href="#not_for_it" tabindex="-1"')
    assert "Made-up claim that does not apply" not in [
        words for words, _ in focused(visit(path), 15)
    ]


def test_a_chart_gives_its_numbers_as_a_table(visit, good):
    page = visit(good, 390)
    details = page.locator("figure:has(#made_up-curves) details")
    details.locator("summary").press("Enter")
    table = details.locator("table")
    table.wait_for()
    spec = json.loads((MADE_UP / "charts" / "made_up-curves.json").read_text())
    longest = max(spec["datasets"].values(), key=len)
    assert table.locator("tr").count() == 1 + len(longest)
    titles = ["arm", "step", "test accuracy", "lowest run", "highest run", "runs with a number"]
    assert table.locator("th").all_inner_texts() == titles
    assert faults(page) == [], "a wide table scrolls in its own box"


def test_a_screen_reader_finds_its_way(visit, good):
    page = visit(good)
    outline = page.locator("body").aria_snapshot()
    for part in (
        "- banner:",
        "- main:",
        "- contentinfo:",
        '- heading "Batch norm, measured" [level=1]',
        '- heading "What batch norm did to this network" [level=2]',
        '- heading "Made-up claim with many measures" [level=2]',
        '- heading "Made-up claim that batch norm speeds something up" [level=2]',
        '- table "Every measure"',
        'rowheader "steps Made up: steps says nothing. Made up: too few examples. Made up."',
        'img "Made-up learning curves: test accuracy against step.',
    ):
        assert part in outline, part


def test_a_narrow_table_is_still_a_table_to_a_screen_reader(visit, good):
    outline = visit(good, 390).locator("body").aria_snapshot()
    assert '- table "Every measure"' in outline
    assert 'rowheader "steps' in outline


def test_pointing_at_a_mark_shows_its_numbers(visit, good):
    page = visit(good)
    page.locator("#made_up-rates .mark-symbol path").nth(3).hover(force=True)
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    assert "learning rate" in tip.inner_text()
    assert page.heard == []


def test_without_chromium_these_tests_skip_and_say_why_or_fail_where_they_are_demanded():
    with pytest.raises(pytest.skip.Exception, match="no Chromium here"):
        need("", None)
    with pytest.raises(pytest.fail.Exception, match="BATCHNORM_REQUIRE_BROWSER=1 demands it"):
        need("", "1")
    need("/usr/bin/chromium", "1")
