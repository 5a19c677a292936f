// A panel as a file: `saveMenu` gives the little menu, whose buttons a keyboard reaches, too.

// What Plotly draws: its own notes (keys that begin with "_") and typed arrays left behind.
function plain(figure) {
  return JSON.stringify(figure, (key, value) => {
    if (key.startsWith("_")) return undefined;
    return ArrayBuffer.isView(value) ? Array.from(value) : value;
  });
}

async function asDataUri(address) {
  const blob = await (await fetch(address)).blob();
  return new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.readAsDataURL(blob);
  });
}

// The figure as the panel shows it, on white, with its image in it.
async function still(panel) {
  const figure = JSON.parse(plain({ data: panel.plot.data, layout: panel.plot.layout }));
  const { layout } = figure;
  for (const image of layout.images || []) image.source = await asDataUri(image.source);
  const font = { ...panel.figure.layout.font, color: "#222222" };
  Object.assign(layout, { font, paper_bgcolor: "white", plot_bgcolor: "white" });
  Object.assign(layout, { dragmode: "pan", shapes: panel.figure.layout.shapes || [] });
  return figure;
}

function headed({ data, layout }, title, note) {
  const top = 56;
  const words = layout.meta && layout.meta.fixed ? `${title}: ${note}` : `<b>${title}</b><br><sup>${note}</sup>`;
  const look = { text: words, x: 0, xref: "paper", xanchor: "left", y: 1, yref: "container", yanchor: "top" };
  return {
    data,
    layout: {
      ...layout,
      title: { ...look, pad: { t: 22 }, font: { size: 15, color: "#222222" } },
      margin: { ...layout.margin, l: Math.max(layout.margin.l, 8), r: Math.max(layout.margin.r, 8), t: layout.margin.t + top },
      width: layout.width + 16,
      height: layout.height + top,
    },
  };
}

function hand(name, content) {
  const link = document.createElement("a");
  link.href = content;
  link.download = name;
  link.click();
}

async function savePicture(panel, name) {
  const figure = headed(await still(panel), panel.heading.textContent, panel.note.textContent);
  const { width, height } = figure.layout;
  hand(`${name}.png`, await Plotly.toImage(figure, { format: "png", width, height, scale: 2 }));
}

// One page that needs nothing else: Plotly's own script is in it.
async function savePage(panel, name) {
  const figure = plain(await still(panel)).replaceAll("<", "\\u003c");
  const script = await (await fetch(document.querySelector('script[src*="plotly.min.js"]').src)).text();
  const text = (node) => node.textContent.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  const style = "body { font-family: system-ui, sans-serif; margin: 24px; color: #222 } h1 { font-size: 1.3rem; margin: 0 }";
  const page = [
    `<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>${text(panel.heading)}</title>`,
    `<meta name="viewport" content="width=device-width"><style>${style}</style><script>${script}<\/script></head>`,
    `<body><h1>${text(panel.heading)}</h1><p>${text(panel.note)}</p><div id="figure"></div><script>`,
    `const figure = ${figure}; Plotly.newPlot("figure", figure.data, figure.layout, { displaylogo: false });`,
    "<\/script></body></html>",
  ];
  const address = URL.createObjectURL(new Blob(page, { type: "text/html" }));
  hand(`${name}.html`, address);
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}

function saveMenu(panel) {
  const menu = document.createElement("details");
  menu.className = "panel-save";
  const summary = document.createElement("summary");
  summary.textContent = "save";
  menu.append(summary);
  for (const [word, save] of [["PNG", savePicture], ["HTML", savePage]]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = word;
    button.addEventListener("click", async () => {
      const name = panel.heading.textContent.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
      try {
        await save(panel, name || "figure");
        menu.open = false;
        summary.focus();
      } catch (error) {
        panel.note.textContent = `This figure was not saved: ${error.message}`;
      }
    });
    menu.append(button);
  }
  menu.addEventListener("keydown", (event) => {
    if (event.key === "Escape") menu.open = false;
  });
  menu.named = () => {
    const title = panel.heading.textContent;
    summary.setAttribute("aria-label", `Save the figure ${title}`);
    for (const button of menu.querySelectorAll("button"))
      button.setAttribute("aria-label", `Save the figure ${title} as ${button.textContent}`);
  };
  return menu;
}
