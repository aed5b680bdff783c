"use strict";
// A choice of the metric: one table is shown at a time. Without it, and in print, those of the main metrics stand there.
biomass.factorial = function (element, data) {
  const figures = [...element.closest("section").querySelectorAll("figure.metric")];
  function choose(key) {
    for (const figure of figures) {
      figure.classList.toggle("chosen", key === "main" ? !figure.classList.contains("more") : figure.dataset.metric === key);
    }
  }
  element.append(biomass.select("metric", [["main", "main metrics"], ...data.options], choose));
  choose("main");
};
