"""The map of lab/tools/watch.py --web in a browser: wide and narrow, light and dark, large, followed, pointed at, and read aloud."""

import threading

import pytest

import browser
from harness import eventually
import watch

pytestmark = [pytest.mark.ours, pytest.mark.skipif(browser.chromium() is None, reason="no Chromium here")]
KIB = 1024
HURRY = "const wait = setTimeout; window.setTimeout = (what, milliseconds) => wait(what, milliseconds / 5)"  # polls five times as often
CANVAS = "document.querySelectorAll('canvas')[{row}]"


class Shown:
    """What a Site shows: a Swarm that a test makes up. While `gate` is not set, no request is answered."""

    def __init__(self):
        self.gate = threading.Event()
        self.gate.set()
        self.asked = 0
        self.show([0, 1], [1])

    def show(self, *held, gone=(), trouble="", chunks=None):
        """Peers a, b, c ... that hold the chunks with these indexes; those in `gone` do not answer."""
        ids = [KIB * index for index in range(chunks or 1 + max(max(each, default=0) for each in held))]
        peers = [watch.Seen(f"10.0.0.{number}:40000", {KIB * index for index in each}, 0.0, "Connection refused" if number in gone else "")
                 for number, each in enumerate(held)]
        self.swarm = watch.Swarm(peers, ids, KIB, 0, trouble)

    def now(self):
        self.gate.wait(30)
        self.asked += 1
        return self.swarm


class Page:
    """A Browser at the page of a Site."""

    def __init__(self):
        self.shown = Shown()
        self.site = watch.Site(self.shown, 0)
        self.browser = browser.Browser()
        self.browser.ask("Page.addScriptToEvaluateOnNewDocument", source=HURRY)
        self.port = self.site.server_address[1]

    def open(self, width=1280, theme="light", scale=1):
        self.browser.theme(theme)
        self.browser.resize(width, scale=scale)
        self.browser.open(f"http://127.0.0.1:{self.port}/")
        self.until("document.querySelectorAll('canvas').length")

    def value(self, script):
        return self.browser.evaluate(script)

    def until(self, script):
        """Wait until an expression in the page is true; return its value."""
        return eventually(lambda: self.value(script), what=script)

    def polled(self, times=2):
        """Wait until the page has polled `times` more times."""
        goal = self.shown.asked + times
        eventually(lambda: self.shown.asked > goal, what="another look of the page")

    def colour(self, row, share=0.5):
        """Red, green and blue of a row's map, at a share of its width."""
        copy = "new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true})"  # or the console would warn about too many reads
        return self.value(f"(copy => {{ const map = {CANVAS.format(row=row)}; copy.drawImage(map, Math.floor({share} * map.width), 4, 1, 1, 0, 0, 1, 1);"
                          f" return [...copy.getImageData(0, 0, 1, 1).data].slice(0, 3); }})({copy})")

    def of_theme(self, name):
        """Red, green and blue of one of the page's colours."""
        told = self.value(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()")
        digits = told[1:] if len(told) == 7 else "".join(2 * digit for digit in told[1:])
        return list(bytes.fromhex(digits))

    def point_at(self, row, share=0.5):
        self.browser.point(*self.value(f"(box => [box.left + {share} * box.width, box.top + 3])({CANVAS.format(row=row)}.getBoundingClientRect())"))

    def tip(self):
        return self.value("document.getElementById('tip').hidden ? '' : document.getElementById('tip').textContent")

    def stop(self):
        self.shown.gate.set()
        self.browser.stop()
        self.site.shutdown()
        self.site.server_close()


@pytest.fixture
def page(ending):
    return ending(Page())


def test_a_large_swarm_fits_wide_and_narrow_windows_in_light_and_dark(page):
    page.shown.show(*[range(0, 2000, 1 + number % 7) for number in range(60)], chunks=2000)
    for width, at_least in ((400, 350), (1280, 700)):
        page.shown.gate.set()
        page.open(width)
        page.until("document.querySelectorAll('tbody tr').length === 61")
        page.shown.gate.clear()  # no more polling: a slow machine has enough to do
        widths = page.value("[...document.querySelectorAll('canvas')].map(canvas => [canvas.clientWidth, canvas.width])")
        assert all(shown == drawn >= at_least for shown, drawn in widths), (width, widths[:3])
        assert page.value("document.documentElement.scrollWidth") <= width
        for theme in ("light", "dark"):
            page.browser.theme(theme)
            eventually(lambda: page.colour(1) == page.of_theme("held") != page.of_theme("none"), what=f"the colours of the {theme} theme")
    assert page.browser.console == []


def test_a_screen_of_finer_pixels_is_used(page):
    page.open(400, scale=3)
    assert page.value(f"{CANVAS.format(row=0)}.width === 3 * {CANVAS.format(row=0)}.clientWidth && {CANVAS.format(row=0)}.height === 48")


def test_copies_and_legend_stand_above_the_rows(page):
    page.open(400)
    assert page.until("[...document.querySelectorAll('tbody th')].map(head => head.textContent)") == ["copies", "10.0.0.0:40000", "10.0.0.1:40000"]
    assert page.value("document.querySelector('.legend').getBoundingClientRect().bottom <= document.querySelector('table').getBoundingClientRect().top")


def test_what_only_peers_that_are_gone_hold_is_held_by_nobody_and_nothing_else_is_orange(page):
    page.shown.show([0, 1], [0], gone=[0])
    page.open()
    assert page.until("document.getElementById('headline').textContent").startswith("1 peer, 0 complete, 2 chunks of 1.0 KiB, the rarest held by nobody, 1 without")
    assert [page.colour(0, 0.25), page.colour(0, 0.75)] == [page.of_theme("held"), page.of_theme("lost")]
    page.shown.gate.clear()
    page.shown.show([0, 1], [0, 1], gone=[0])
    page.shown.gate.set()
    page.until("document.querySelector('tbody').textContent.includes('2 of 2  complete')")
    assert page.of_theme("lost") not in [page.colour(row, share) for row in range(3) for share in (0.25, 0.75)]


def test_a_chunk_that_has_just_come_is_shown_as_new_and_then_as_held(page):
    page.open()
    page.shown.show([0, 1], [0, 1])
    eventually(lambda: page.colour(2, 0.25) == page.of_theme("new"), what="a new chunk")
    eventually(lambda: page.colour(2, 0.25) == page.of_theme("held"), what="a chunk that is not new any more")


def test_the_map_is_drawn_anew_when_size_or_theme_change_though_no_answer_comes(page):
    page.open(1280, "light")
    page.polled()
    page.shown.gate.clear()
    page.browser.resize(700)
    page.until(f"{CANVAS.format(row=0)}.width === {CANVAS.format(row=0)}.clientWidth && innerWidth === 700")
    light = page.colour(1)
    page.browser.theme("dark")
    eventually(lambda: page.colour(1) == page.of_theme("held") != light, what="the colours of the dark theme")


def test_what_the_pointer_is_at_is_told_for_as_long_as_it_stays(page):
    page.open()
    page.polled()
    page.point_at(2, 0.25)
    assert page.tip() == "chunk 0: missing"
    page.polled()
    assert page.tip() == "chunk 0: missing"
    page.shown.show([0, 1], [0, 1])
    page.until("document.getElementById('tip').textContent === 'chunk 0: held'")
    page.point_at(0, 0.25)
    assert page.tip() == "chunk 0: 2 copies"
    page.shown.show(range(1000, 5000), [1], chunks=5000)
    page.until("/^chunks 1[0-9]{3} to 1[0-9]{3}: 1 copy at least$/.test(document.getElementById('tip').textContent)")
    page.browser.point(2, 2)
    assert page.tip() == ""


def test_peers_come_and_go_and_the_rows_of_the_others_stay(page):
    page.open()
    page.polled()
    page.value("document.querySelectorAll('tbody tr')[1].mark = 1")
    page.shown.show([0, 1], [1], [0])
    page.until("document.querySelectorAll('tbody tr').length === 4")
    page.shown.show([0, 1])
    page.until("document.querySelectorAll('tbody tr').length === 2")
    assert page.value("document.querySelectorAll('tbody tr')[1].mark") == 1


@pytest.mark.parametrize("width", [400, 1280])
def test_a_screen_reader_is_told_what_is_what(page, width):
    page.open(width)
    page.polled()
    roles = page.browser.roles()
    assert {"banner", "main", "table", "image"} <= set(roles) and roles["heading"] == ["A swarm"]
    assert roles["columnheader"] == ["peer", "chunks", "holds"] and roles["rowheader"] == ["copies", "10.0.0.0:40000", "10.0.0.1:40000"]
    assert roles["image"] == ["1 to 2", "2 of 2 complete", "1 of 2"]
    page.value("new MutationObserver(changes => document.title += changes.length)"
               ".observe(document.querySelector('[role=status]'), {childList: true, characterData: true, subtree: true})")
    page.polled()
    assert page.value("document.title") == "A swarm", "what has not changed is not read aloud again"
    page.shown.show([0, 1], [1], trouble="no answer")
    page.until("document.querySelector('[role=status]').textContent.endsWith('tracker: no answer')")
    assert page.browser.console == []


def test_a_watch_that_ends_is_told_of_and_one_that_comes_back_is_followed(page):
    page.open()
    page.site.shutdown()
    page.site.server_close()
    page.until("document.getElementById('headline').textContent === 'watch.py has ended'")
    page.shown.show([0, 1], [0, 1])
    page.site = watch.Site(page.shown, page.port)
    page.until("document.getElementById('headline').textContent.startsWith('2 peers, 2 complete')")
