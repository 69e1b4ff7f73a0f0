"use strict";
// Draws the plots of #payload in the reader's theme and draws them again when the theme changes.
(function () {
  const payload = JSON.parse(document.getElementById("payload").textContent);
  const select = document.getElementById("layer-record");
  const config = { displayModeBar: false, responsive: true, scrollZoom: false };
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  function variable(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  // "var(--c0)" under a key that ends in "color" is a name in the page's palette
  function themed(value, key) {
    if (Array.isArray(value)) return value.map((item) => themed(item, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, themed(v, k)]));
    }
    const match = typeof value === "string" && /color$/.test(key) && /^var\((--[\w-]+)\)$/.exec(value);
    return match ? variable(match[1]) : value;
  }

  function axis(own) {
    const lines = { gridcolor: "var(--grid)", linecolor: "var(--grid)", zerolinecolor: "var(--grid)" };
    return { ...lines, tickfont: { size: 12 }, fixedrange: true, ...own };
  }

  function laidOut(own) {
    return {
      font: { family: variable("--sans"), size: 13, color: "var(--ink)" },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { t: 12, r: 16, b: 48, l: 56 },
      showlegend: false,
      dragmode: false,
      hovermode: "closest",
      hoverlabel: { bgcolor: "var(--panel)", bordercolor: "var(--grid)", font: { color: "var(--ink)" }, align: "left" },
      ...own,
      xaxis: axis(own.xaxis),
      yaxis: axis(own.yaxis),
    };
  }

  function figure(place) {
    const [kind, part] = place.split("/");
    return kind === "layers" ? payload.layers[select.value][part] : payload.plots[kind];
  }

  function draw(place) {
    const { data, layout } = figure(place.dataset.plot);
    return Plotly.react(place, themed(data), themed(laidOut(layout)), config);
  }

  function drawAll() {
    return Promise.all(Array.from(document.querySelectorAll("[data-plot]"), draw));
  }

  function showLayers() {
    document.querySelectorAll("[data-plot^='layers/']").forEach(draw);
    document.querySelectorAll("[data-layers-of]").forEach((table) => {
      table.hidden = table.dataset.layersOf !== select.value;
    });
  }

  if (select) {
    // a reload may keep the choice of before
    showLayers();
    select.addEventListener("change", showLayers);
  }
  dark.addEventListener("change", drawAll);
  drawAll().then(() => {
    document.documentElement.dataset.theme = dark.matches ? "dark" : "light";
  });
})();
