"""llama-server's web page in a real browser: attach a picture, ask, read the answer, ask again."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from halfv_edge.server import llama_server
from tests.support import browser
from tests.support.browser import ANSWER_SEC, Browser
from tests.support.demo_server import PICTURES, metric, start

BOX = "document.querySelector('textarea')"


@pytest.mark.skipif(browser.program() is None, reason="there is no Chromium here")
@pytest.mark.skipif(not llama_server.has_web_page(), reason="built without npm, so without the web page")
def test_a_conversation_about_a_picture(programs: Path, tmp_path: Path) -> None:
    with start(programs, "-np", "1", "-c", "4096", "--metrics") as server, Browser(tmp_path / "profile") as page:
        page.open(server.url)
        page.wait(f"!!{BOX}")
        page.give_file("input[type=file]", PICTURES[0])
        page.wait("[...document.images].some(image => image.complete && image.naturalWidth > 100)")
        for count, (question, answer) in enumerate((("What is the total?", "79.00"), ("What is the date?", ""))):
            page.evaluate(f"{BOX}.focus()")
            page.type(question)
            page.press_enter()
            # its tokens a second stand below every answer, and below one that is not complete yet
            page.wait(f"document.body.innerText.split('t/s').length > {count + 1}")
            end = time.monotonic() + ANSWER_SEC
            while metric(server, "halfv:requests_total") <= count:
                assert time.monotonic() < end, server.log()[-1000:]
                time.sleep(0.2)
            page.wait(f"document.body.innerText.includes({json.dumps(answer)})")
            said = page.text()
            assert question in said and answer in said
        page.screenshot(tmp_path / "page.png")
        assert (tmp_path / "page.png").stat().st_size > 10_000
