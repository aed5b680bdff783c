"use strict";
// What the scripts of sections share. A section's script defines biomass.<name> = function (element, data) {…}.
// Text of data goes into the page through textContent alone, never as HTML.
window.biomass = (function () {
  const biomass = {};

  // Colours ----------------------------------------------------------------------------------------------------------

  // Okabe & Ito 2008, told apart by the colour-blind; the yellow last, since it is faint on white.
  biomass.okabe = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#000000", "#f0e442"];
  biomass.missing = "#d9d9d9"; // what has no value, and what is not chosen
  biomass.maps = {
    viridis: ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"],
    cividis: ["#00224e", "#1a386f", "#434e6c", "#61656f", "#7d7c78", "#9b9476", "#bcae6c", "#dec958", "#fee838"],
    blues: ["#f7fbff", "#deebf7", "#c6dbef", "#9dcae1", "#6aaed6", "#4191c6", "#2070b4", "#08509b", "#08306b"],
    diverging: ["#7f3b08", "#be630a", "#ef9e3c", "#fed7a2", "#f6f6f7", "#cecde4", "#988dbe", "#5d3790", "#2d004b"],
  };

  function channels(hex) {
    return [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
  }

  // The colour of a value between 0 and 1 in a map; diverging: 0.5 is the middle. NaN, null: missing.
  biomass.color = function (value, map = "viridis") {
    if (value === null || !Number.isFinite(value)) return biomass.missing;
    const stops = biomass.maps[map];
    const place = Math.min(1, Math.max(0, value)) * (stops.length - 1);
    const below = Math.min(stops.length - 2, Math.floor(place));
    const [low, high] = [channels(stops[below]), channels(stops[below + 1])];
    return "rgb(" + low.map((one, i) => Math.round(one + (high[i] - one) * (place - below))).join(",") + ")";
  };

  // As many colours as there are categories: up to eight of Okabe & Ito, more along viridis, in their order.
  biomass.categories = function (count) {
    if (count <= biomass.okabe.length) return biomass.okabe.slice(0, count);
    return Array.from({ length: count }, (_, i) => biomass.color((0.97 * i) / (count - 1)));
  };

  // Text that can be read on a colour, "#rrggbb" or "rgb(r,g,b)": black or white, by its luminance (WCAG 2.2).
  biomass.ink = function (color) {
    const parts = color.startsWith("#") ? channels(color) : color.match(/\d+/g).map(Number);
    const [red, green, blue] = parts.map((one) => (one <= 10.3 ? one / 3294.6 : ((one / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000000" : "#ffffff";
  };

  // Elements ---------------------------------------------------------------------------------------------------------

  function fill(node, attributes, children) {
    for (const [key, value] of Object.entries(attributes || {})) {
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value !== null && value !== undefined) node.setAttribute(key, value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }

  // element("button", {class: "a", onclick: f}, "text", another element)
  biomass.element = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
  biomass.svg = (name, attributes, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

  // A labelled choice. options: [[value, text], …]; change(value) is called at each choice, not at first.
  biomass.select = function (label, options, change) {
    const box = biomass.element("select", { onchange: () => change(box.value) });
    for (const [value, text] of options) box.append(biomass.element("option", { value }, biomass.shorten(text)));
    return biomass.element("label", { class: "choice" }, label + " ", box);
  };

  // A canvas as wide as its place and ratio times as high, sharp on every screen. draw(context, width, height) in CSS
  // pixels, at first, at every change of size and whenever the redraw() of what is returned is called.
  biomass.canvas = function (element, ratio, label, draw) {
    const canvas = biomass.element("canvas", { role: "img", "aria-label": label });
    element.append(canvas);
    function redraw() {
      const width = Math.max(1, Math.floor(element.clientWidth));
      const height = Math.max(1, Math.round(width * ratio));
      const scale = Math.max(1, window.devicePixelRatio || 1);
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
      canvas.style.width = width + "px";
      canvas.style.height = height + "px";
      const context = canvas.getContext("2d");
      context.scale(scale, scale);
      draw(context, width, height);
    }
    let last = element.clientWidth;
    redraw();
    new ResizeObserver(() => {
      if (element.clientWidth !== last) {
        last = element.clientWidth;
        redraw();
      }
    }).observe(element);
    return { canvas, redraw };
  };

  // One tooltip for the page: show(event, ["a line", …]) near the pointer, hide().
  biomass.tooltip = (function () {
    let box = null;
    return {
      show(event, lines) {
        if (!box) {
          box = biomass.element("div", { id: "tooltip", role: "tooltip" });
          document.body.append(box);
        }
        box.replaceChildren(...lines.map((line) => biomass.element("div", {}, biomass.shorten(line, 80))));
        box.style.display = "block";
        const room = [document.documentElement.clientWidth, document.documentElement.clientHeight];
        const x = Math.min(event.clientX + 14, room[0] - box.offsetWidth - 8);
        const below = event.clientY + 14 + box.offsetHeight < room[1];
        const y = below ? event.clientY + 14 : event.clientY - box.offsetHeight - 10;
        box.style.left = Math.max(4, x) + "px";
        box.style.top = Math.max(4, y) + "px";
      },
      hide() {
        if (box) box.style.display = "none";
      },
    };
  })();

  // A bar that says what colours mean: colorbar("viridis", "0", "1", "accuracy").
  biomass.colorbar = function (map, low, high, label) {
    const bar = biomass.element("span", { class: "bar", "aria-hidden": "true" });
    bar.style.background = "linear-gradient(to right," + biomass.maps[map].join(",") + ")";
    return biomass.element("div", { class: "colorbar" }, label ? label + " " : null, low + " ", bar, " " + high);
  };

  // Values -----------------------------------------------------------------------------------------------------------

  // A long name in its beginning and its end.
  biomass.shorten = function (text, most = 48) {
    const letters = Array.from(String(text));
    if (letters.length <= most) return letters.join("");
    const end = Math.floor(most / 3);
    return letters.slice(0, most - end - 1).join("") + "…" + letters.slice(-end).join("");
  };

  // A number for people; "–" where there is none.
  biomass.number = function (value, digits = 2) {
    return value === null || value === undefined || !Number.isFinite(value) ? "–" : value.toFixed(digits);
  };

  // Base64 of little-endian numbers → a typed array: unpack(text, Uint16Array).
  biomass.unpack = function (text, kind) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    return new kind(bytes.buffer);
  };

  // Start the scripts of all sections, each in the first element of its section that has the class "moves", or in a new
  // one at its end. What has the class "still" is for those without scripts. A script that fails leaves it there.
  biomass.start = function () {
    document.documentElement.classList.add("moving");
    for (const section of document.querySelectorAll("section[data-section]")) {
      let place = section.querySelector(".moves");
      if (!place) section.append((place = biomass.element("div", { class: "moves" })));
      try {
        biomass[section.dataset.section](place, JSON.parse(document.getElementById(section.id + "-data").textContent));
      } catch (error) {
        section.classList.add("failed");
        console.error(section.dataset.section, error);
      }
    }
    const closed = () => [...document.querySelectorAll("details:not([open]):not(.noprint)")];
    let opened = [];
    window.addEventListener("beforeprint", () => {
      opened = closed();
      for (const one of opened) one.open = true;
    });
    window.addEventListener("afterprint", () => {
      for (const one of opened) one.open = false;
    });
  };

  return biomass;
})();
