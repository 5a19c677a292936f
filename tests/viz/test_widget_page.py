"""The notebook figure's own script in a real browser, without a notebook: it draws, and reports clicks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from plotly.offline import get_plotlyjs

import codetr_lab
from codetr_lab.viz import curves_figure

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.browser
SCRIPT = Path(codetr_lab.__file__).parent / "viz" / "widgets" / "figure.js"
HARNESS = """
<!DOCTYPE html><meta charset="utf-8"><div id="a"></div><div id="b"></div><script type="module">
const source = __SOURCE__;
const widget = (await import(URL.createObjectURL(new Blob([source], { type: 'text/javascript' })))).default;
class Model {
  constructor() { this.listeners = {}; this.sent = []; this.state = { figure: window.firstFigure }; }
  get(name) { return this.state[name]; }
  on(name, callback) { (this.listeners[name] ??= []).push(callback); }
  off(name, callback) { this.listeners[name] = this.listeners[name].filter((c) => c !== callback); }
  send(content) {
    this.sent.push(content);
    if (content.ask === 'plotly') {
      const bytes = new TextEncoder().encode(window.plotlySource);
      setTimeout(() => this.tell('msg:custom', { plotly: true }, [new DataView(bytes.buffer)]));
    }
  }
  tell(name, ...values) { (this.listeners[name] ?? []).forEach((callback) => callback(...values)); }
  set(name, value) { this.state[name] = value; this.tell('change:' + name); }
}
window.first = new Model();
window.second = new Model();
window.cleanups = await Promise.all([
  widget.render({ model: first, el: document.querySelector('#a') }),
  widget.render({ model: second, el: document.querySelector('#b') }),
]);
window.ready = true;
</script>
"""


def test_the_script_draws_and_reports_clicks(browser_page: Page) -> None:
    page = browser_page
    page.set_default_timeout(60_000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    figure = curves_figure({"a": ([0, 1, 2], [0, 1, 0])}, "x", "y")
    figure.data[0].update(mode="lines+markers", customdata=[[10.0], [11.0], [12.0]], marker={"size": 20})
    figure.update_layout(width=500, hovermode="closest")
    page.add_init_script(f"window.firstFigure = {json.dumps(figure.to_json())};")
    page.add_init_script(f"window.plotlySource = {json.dumps(get_plotlyjs())};")
    page.route("http://figure.test/", lambda route: route.fulfill(
        body=HARNESS.replace("__SOURCE__", json.dumps(SCRIPT.read_text())), content_type="text/html"
    ))  # fmt: skip
    page.goto("http://figure.test/")
    page.wait_for_function("window.ready === true")
    assert page.evaluate("[first.sent, second.sent].flat().filter((c) => c.ask).length") == 1
    assert page.evaluate("[...document.querySelectorAll('.js-plotly-plot')].map((p) => p.data.length)") == [1, 1]
    other = curves_figure({"a": ([0, 1], [0, 1]), "b": ([0, 1], [1, 0])}, "x", "y")
    page.evaluate("text => second.set('figure', text)", other.to_json())
    page.wait_for_function("document.querySelector('#b .js-plotly-plot').data.length === 2")
    x, y = page.evaluate(
        """() => {
          const plot = document.querySelector('#a .js-plotly-plot'), { xaxis, yaxis } = plot._fullLayout;
          const box = plot.getBoundingClientRect();
          return [box.x + xaxis._offset + xaxis.d2p(1), box.y + yaxis._offset + yaxis.d2p(1)];
        }"""
    )
    page.mouse.move(x - 3, y)
    page.mouse.move(x, y)
    page.mouse.click(x, y)
    page.wait_for_function("first.sent.some((c) => 'click' in c)")
    assert page.evaluate("first.sent.at(-1)") == {"click": 0, "row": [11]}
    page.evaluate("cleanups.forEach((clean) => clean())")
    assert not errors
