// Runs once per figure grid; Gradio gives `element`, `props`, `trigger` and `watch`.
const grid = element.querySelector(".figure-grid");
const config = { displaylogo: false, displayModeBar: false, scrollZoom: false, doubleClick: "reset" };
const parts = (window.workbenchParts ??= new Map()); // key -> promise of a trace, for all grids of the page
const mostParts = 400;
// Where a page has a <base>, Plotly writes the whole address into its clips, and they fail when the address changes.
document.querySelector("base")?.remove();
let turn = 0;
let working = 0;

// `data-busy` is there while anything is being drawn.
async function busily(work) {
  working += 1;
  grid.dataset.busy = "true";
  try {
    return await work();
  } finally {
    working -= 1;
    if (!working) delete grid.dataset.busy;
  }
}

function part(key) {
  if (!parts.has(key)) {
    const answer = fetch(`parts/${key}`).then((response) => {
      if (!response.ok) throw new Error("a part of this figure is gone; move a control, or reload the page");
      return response.json();
    });
    answer.catch(() => parts.delete(key));
    keep(key, answer);
  }
  return parts.get(key);
}

function keep(key, answer) {
  parts.set(key, answer);
  if (parts.size > mostParts) parts.delete(parts.keys().next().value);
}

// Plotly writes into the traces that it is given (when a legend is clicked): the shared ones are copied.
async function whole({ part: key, trace, ...own }) {
  if (!key) return own;
  if (trace) keep(key, Promise.resolve(trace));
  return { ...(await part(key)) };
}

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
  panel.save = saveMenu(panel);
  caption.append(panel.save);
  panel.note = make("span", "panel-note", caption);
  panel.plot = make("div", "panel-plot", panel);
  panel.plot.setAttribute("role", "img");
  sizes.observe(panel.plot);
  return panel;
}

function fit(panel, width, below) {
  const { layout } = panel.figure;
  const meta = layout.meta || {};
  const page = getComputedStyle(document.body);
  const font = { ...layout.font, color: page.getPropertyValue("--body-text-color").trim() || layout.font.color };
  if (meta.fixed) return { ...layout, font }; // it scrolls in its panel
  const margin = { ...layout.margin, b: below };
  const inside = width - margin.l - margin.r;
  return {
    ...layout,
    xaxis: { ...layout.xaxis }, // Plotly writes the fitted ranges into what it is given
    yaxis: { ...layout.yaxis },
    width,
    margin,
    height: meta.aspect ? Math.round(inside * meta.aspect) + margin.t + margin.b : layout.height,
    font,
    dragmode: panel.drawing ? "drawrect" : layout.dragmode,
    newshape: { line: { color: "#FF2D87", width: 2 } },
    shapes: layout.shapes || [],
    uirevision: panel.dataset.revision,
    editrevision: String(turn), // a drawn box becomes an object, and is not kept as a drawing
  };
}

// Pixels below an image: its legend's rows, or its colour bar.
function needed(panel) {
  const { layout } = panel.figure;
  if (!layout.meta || !layout.meta.aspect) return layout.margin.b;
  const legend = panel.plot.querySelector(".legend");
  const rows = legend ? Math.ceil(legend.getBBox().height) + 10 : 0;
  return Math.max(rows, layout.meta.bottom || 0);
}

function draw(panel) {
  if (!panel.figure || !panel.plot.clientWidth) return; // a hidden tab; the observer calls again when it shows
  return busily(() => drawn(panel));
}

async function drawn(panel) {
  const width = panel.plot.clientWidth;
  const { data, layout } = panel.figure;
  const known = panel.width === width && panel.below; // mostly the legend is as high as it was
  const guess = known || layout.margin.b;
  panel.width = width;
  await Plotly.react(panel.plot, data, fit(panel, width, guess), config);
  panel.below = Math.max(known || 0, needed(panel)); // while the image stays, its place stays
  if (panel.below !== guess) await Plotly.react(panel.plot, data, fit(panel, width, panel.below), config);
  if (panel.listening) return;
  panel.listening = true;
  panel.plot.on("plotly_click", (event) => {
    const { customdata, data } = event.points[0];
    if (customdata === undefined) return;
    trigger("select", { panel: panel.dataset.name, row: Array.from(customdata), meta: data.meta || {} });
  });
  panel.plot.on("plotly_relayout", (change) => {
    const shape = change.shapes && change.shapes[change.shapes.length - 1];
    if (!shape || !panel.drawing) return;
    const box = [shape.x0, shape.y0, shape.x1, shape.y1];
    trigger("edit", { panel: panel.dataset.name, box });
  });
}

const sizes = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const panel = target.parentElement;
    if (panel && panel.width !== target.clientWidth) draw(panel);
  }
});

async function show(panel, { name, title, note, color, figure, draw: drawing }, mine) {
  panel.dataset.name = name;
  panel.heading.textContent = title;
  panel.note.textContent = note;
  panel.swatch.style.background = color || "transparent";
  panel.swatch.hidden = !color;
  panel.plot.setAttribute("aria-label", title + ": " + note);
  panel.save.named();
  const text = JSON.stringify([figure.data.map((trace) => trace.part || trace), figure.layout, drawing]);
  if (panel.text === text) return;
  const data = await Promise.all(figure.data.map(whole));
  if (mine !== turn) return; // meanwhile there is something newer to show
  panel.text = text;
  const picture = JSON.stringify(figure.layout.images || []);
  if (panel.picture !== picture) {
    panel.dataset.revision = String(Number(panel.dataset.revision || 0) + 1);
    panel.below = 0;
  }
  panel.picture = picture; // another image resets pan and zoom, another slider position does not
  panel.drawing = drawing;
  panel.figure = { data, layout: figure.layout };
  await draw(panel);
}

async function update() {
  const mine = ++turn;
  const panels = JSON.parse(props.value || "[]");
  while (grid.children.length > panels.length) {
    const last = grid.lastElementChild;
    sizes.unobserve(last.plot);
    Plotly.purge(last.plot);
    last.remove();
  }
  try {
    await busily(() =>
      Promise.all(panels.map((content, index) => show(grid.children[index] || addPanel(), content, mine))),
    );
  } catch (error) {
    grid.firstElementChild.note.textContent = error.message;
  }
}

// While Gradio waits for figures that may need a model (`pending`), the style sheet shows for how many seconds.
const place = grid.closest(".html-container") || grid.parentElement;
let clock;
new MutationObserver(() => {
  const waits = place.classList.contains("pending");
  if (waits === Boolean(clock)) return;
  clearInterval(clock);
  place.dataset.waited = 0;
  clock = waits && setInterval(() => (place.dataset.waited = Number(place.dataset.waited) + 1), 1000);
}).observe(place, { attributeFilter: ["class"] });
new MutationObserver(() => [...grid.children].forEach(draw)).observe(document.body, { attributeFilter: ["class"] });
watch("value", update);
update();
