"""The page of a survey in a real browser: figures drawn, tables sorting, a silent console, a phone."""

import json
import re
import shutil
import subprocess

import pytest

from tests.made_up_survey import report

PROBE = """
<script>
addEventListener("load", function () {
  const root = document.documentElement;
  const found = { errors: window.caught, boxes: [], wide: root.scrollWidth, width: innerWidth };
  const ids = Array.from(document.querySelectorAll("[id]"), e => e.id);
  found.ids = ids.length - new Set(ids).size;
  for (const svg of document.querySelectorAll("svg")) {
    const box = svg.getBBox(), place = svg.getBoundingClientRect();
    found.boxes.push([box.width, box.height, place.width, svg.querySelectorAll("path, use").length]);
  }
  const table = document.querySelector("table.sortable"), names = table.tHead.rows[0].cells;
  for (const name of ["rise", "QAT", "scheme"]) {
    const head = Array.from(names).find(c => c.textContent === name), column = head.cellIndex;
    const read = () => Array.from(table.tBodies[0].rows, r => r.cells[column].dataset.value ?? "");
    found[name] = [];
    for (let i = 0; i < 2; i++) {
      head.firstChild.click();
      const aria = head.getAttribute("aria-sort");
      found[name].push([aria, read(), table.tBodies[0].rows[0].cells[0].textContent]);
    }
  }
  document.querySelectorAll("details").forEach(d => d.open = true);
  found.opened = root.scrollWidth;
  const out = document.createElement("pre");
  out.id = "findings"; out.textContent = JSON.stringify(found);
  document.body.append(out);
});
</script>"""
CATCH = "<script>window.caught = [];addEventListener('error', e => window.caught.push(String(e.message)));</script>"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--v=0",
    "--virtual-time-budget=4000",
    "--allow-file-access-from-files",
    "--dump-dom",
)


def with_probe(page, probe):
    return page.replace("<head>", "<head>" + CATCH, 1).replace("</body>", probe + "</body>")


def visit(browser, folder, address, width):
    """The document after its scripts ran, and what the console said."""
    profile = folder / "profile"
    run = subprocess.run(
        [browser, *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},900", address],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    shutil.rmtree(profile, ignore_errors=True)
    return run.stdout, [line for line in run.stderr.splitlines() if ":CONSOLE" in line]


def findings(text):
    found = re.search(r'<pre id="findings">(.*?)</pre>', text, re.S)
    assert found, text[-500:]
    return json.loads(found.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


@pytest.fixture
def page():
    return report()


@pytest.mark.browser
def test_page_in_a_browser(page, browser, tmp_path):
    text = page.read_text()
    probed = tmp_path / "probed.html"
    probed.write_text(with_probe(text, PROBE))
    dom, console = visit(browser, tmp_path, probed.as_uri(), 1280)
    found = findings(dom)
    assert console == [] and found["errors"] == [] and found["ids"] == 0
    assert len(found["boxes"]) == 18 and all(min(box) > 5 for box in found["boxes"])
    assert found["wide"] <= 1280

    (up, rises, _), (down, falls, _) = found["rise"]
    assert (up, down) == ("ascending", "descending") and len(rises) == len(falls) == 11
    assert list(map(float, rises)) == sorted(map(float, rises))
    assert list(map(float, falls)) == sorted(map(float, falls), reverse=True)
    assert [steps[:2] for _, steps, _ in found["QAT"]] == [
        ["40", "60"],
        ["60", "40"],
    ]  # rows without stay last
    assert [first for _, _, first in found["scheme"]] == ["float", "w8"]

    # A window narrower than 500 px is not to be had: the phone is a frame of 390 px that reports to its page.
    phone = tmp_path / "phone.html"
    send = PROBE.replace("document.body.append(out)", "parent.postMessage(out.textContent, '*')")
    (tmp_path / "framed.html").write_text(with_probe(text, send))
    phone.write_text(
        '<!DOCTYPE html><body><iframe src="framed.html" style="width:390px;height:800px;border:0"></iframe>'
        "<script>"
        "addEventListener('message', function (e) { const out = document.createElement('pre');"
        "out.id = 'findings'; out.textContent = e.data; document.body.append(out); });</script></body>"
    )
    dom, console = visit(browser, tmp_path, phone.as_uri(), 1000)
    found = findings(dom)
    assert found["width"] == 390 and console == [] and found["errors"] == []
    assert found["wide"] <= 390 and found["opened"] <= 390
