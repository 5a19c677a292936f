// A Plotly figure of which Python keeps the state: `figure` is its JSON, clicks go back as messages.
// Plotly's script (5 MB) comes from the kernel, once for a page, and not with every figure.
const shared = (globalThis.codetrPlotly ??= { waiting: [], asked: 0 });
const config = { displaylogo: false, displayModeBar: false, doubleClick: "reset" };
const patience = 20000; // milliseconds until the script is asked for again, of another kernel perhaps

function receive(source) {
  if (!shared.Plotly) {
    const module = { exports: {} };
    new Function("module", "exports", source)(module, module.exports);
    shared.Plotly = module.exports;
  }
  shared.waiting.splice(0).forEach((ready) => ready(shared.Plotly));
}

function plotly(model) {
  if (shared.Plotly) return Promise.resolve(shared.Plotly);
  return new Promise((ready) => {
    shared.waiting.push(ready);
    model.on("msg:custom", (content, buffers) => {
      if (content.plotly) receive(new TextDecoder().decode(buffers[0]));
    });
    if (Date.now() - shared.asked < patience) return;
    shared.asked = Date.now();
    model.send({ ask: "plotly" });
  });
}

export default {
  async render({ model, el }) {
    const plot = document.createElement("div");
    el.style.overflowX = "auto";
    el.append(plot);
    const Plotly = await plotly(model);
    let listening = false;
    async function draw() {
      const { data, layout } = JSON.parse(model.get("figure"));
      await Plotly.react(plot, data, layout, config);
      plot.dataset.drawn = String(Number(plot.dataset.drawn || 0) + 1);
      if (listening) return;
      listening = true;
      plot.on("plotly_click", ({ points }) => {
        const row = points[0].customdata;
        if (row !== undefined) model.send({ click: points[0].curveNumber, row: Array.from(row) });
      });
    }
    model.on("change:figure", draw);
    await draw();
    return () => {
      model.off("change:figure", draw);
      Plotly.purge(plot);
    };
  },
};
