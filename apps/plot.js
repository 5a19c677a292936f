// Runs once per FigureGrid; Gradio gives `element`, `props`, `trigger` and `watch`.
const grid = element.querySelector(".figure-grid");
const config = { displaylogo: false, displayModeBar: false, scrollZoom: false, doubleClick: "reset", responsive: false };

function make(tag, name, parent) {
  const node = document.createElement(tag);
  node.className = name;
  parent.append(node);
  return node;
}

function addPanel() {
  const panel = make("figure", "panel", grid);
  const caption = make("figcaption", "panel-caption", panel);
  panel.swatch = make("span", "panel-swatch", caption);
  panel.heading = make("span", "panel-title", caption);
  panel.note = make("span", "panel-note", caption);
  panel.plot = make("div", "panel-plot", panel);
  panel.setAttribute("role", "img");
  sizes.observe(panel.plot);
  return panel;
}

function fit(panel, width, legend) {
  const { layout } = panel.figure;
  const page = getComputedStyle(document.body);
  const margin = { ...layout.margin, b: legend };
  const aspect = layout.meta && layout.meta.aspect;
  return {
    ...layout,
    xaxis: { ...layout.xaxis }, // Plotly writes the fitted ranges into what it is given
    yaxis: { ...layout.yaxis },
    width,
    margin,
    height: aspect ? Math.round((width - margin.l - margin.r) * aspect) + margin.t + margin.b : layout.height,
    font: { ...layout.font, color: page.getPropertyValue("--body-text-color").trim() || layout.font.color },
    uirevision: panel.dataset.revision,
  };
}

async function draw(panel) {
  const width = panel.plot.clientWidth;
  if (!panel.figure || !width) return; // a hidden tab; the observer calls again when it shows
  panel.width = width;
  const { data, layout } = panel.figure;
  await Plotly.react(panel.plot, data, fit(panel, width, layout.margin.b), config);
  const legend = panel.plot.querySelector(".legend");
  const needed = legend ? Math.ceil(legend.getBBox().height) + 10 : 0;
  if (needed !== layout.margin.b) await Plotly.react(panel.plot, data, fit(panel, width, needed), config);
  if (panel.listening) return;
  panel.listening = true;
  panel.plot.on("plotly_click", (event) => {
    const row = event.points[0].customdata;
    if (row !== undefined) trigger("select", { panel: panel.dataset.name, row: Array.from(row) });
  });
}

const sizes = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const panel = target.parentElement;
    if (panel && panel.width !== target.clientWidth) draw(panel);
  }
});

function update() {
  const panels = JSON.parse(props.value || "[]");
  while (grid.children.length > panels.length) {
    const last = grid.lastElementChild;
    sizes.unobserve(last.plot);
    Plotly.purge(last.plot);
    last.remove();
  }
  panels.forEach(({ name, title, note, color, figure }, index) => {
    const panel = grid.children[index] || addPanel();
    panel.dataset.name = name;
    panel.heading.textContent = title;
    panel.note.textContent = note;
    panel.swatch.style.background = color || "transparent";
    panel.setAttribute("aria-label", title + ": " + note);
    const text = JSON.stringify(figure);
    if (panel.text === text) return;
    panel.text = text;
    const picture = JSON.stringify(figure.layout.images || []);
    if (panel.picture !== picture) panel.dataset.revision = String(Number(panel.dataset.revision || 0) + 1);
    panel.picture = picture; // another image resets pan and zoom, another slider position does not
    panel.figure = figure;
    draw(panel);
  });
  grid.dataset.drawn = String(Number(grid.dataset.drawn || 0) + 1);
}

new MutationObserver(() => [...grid.children].forEach(draw)).observe(document.body, { attributeFilter: ["class"] });
watch("value", update);
update();
