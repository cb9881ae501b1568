// Draws a model's figures over time. The page names the address of the points.
"use strict";

(function () {
  const box = document.getElementById("curve");
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const names = { model: "model", popular: "most-popular", popular_decayed: "popular lately" };
  let plot = null;

  function width() {
    const { paddingLeft, paddingRight } = getComputedStyle(box);
    return box.clientWidth - parseFloat(paddingLeft) - parseFloat(paddingRight);
  }

  function options(metric) {
    const axis = { stroke: colour("--text"), grid: { stroke: colour("--line"), width: 1 } };
    return {
      width: width(),
      height: Math.max(180, Math.min(320, width() * 0.4)),
      series: [
        {},
        { label: names.model, stroke: colour("--model"), width: 2 },
        { label: names.popular, stroke: colour("--popular"), width: 2, dash: [6, 4] },
        { label: names.popular_decayed, stroke: colour("--lately"), width: 2, dash: [2, 3] },
      ],
      axes: [axis, { ...axis, label: metric, size: 64 }],
    };
  }

  function draw(answer) {
    if (!answer.metric) {
      box.textContent = "No event was judged yet.";
      plot = null;
      return;
    }
    const figures = answer.figures;
    const data = [answer.times, figures.model, figures.popular, figures.popular_decayed];
    if (plot === null || plot.metric !== answer.metric) {
      box.textContent = "";
      plot = new uPlot(options(answer.metric), data, box);
      plot.metric = answer.metric;
    } else {
      plot.setData(data);
    }
  }

  async function read() {
    // A page that nobody sees asks for nothing.
    if (document.visibilityState === "visible") {
      try {
        const answer = await fetch(box.dataset.source, { redirect: "error" });
        if (answer.ok) draw(await answer.json());
      } catch {
        // The server is away. The live part of the page says so.
      }
    }
    setTimeout(read, 1000);
  }

  window.addEventListener("resize", () => {
    if (plot !== null) plot.setSize({ width: width(), height: plot.height });
  });
  read();
})();
