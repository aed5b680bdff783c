"use strict";
// Scatter plots of the wells, one a pair, under one legend. The well under the pointer is marked in all of them.
biomass.scatter = function (element, data) {
  const missing = 65535, most = 7, edge = 10;
  const fields = {};
  for (const [role, field] of Object.entries(data.fields)) {
    fields[role] = { values: field.values, codes: biomass.unpack(field.codes, Uint16Array) };
  }
  const panels = data.panels.map((panel) => ({
    title: biomass.shorten(panel.statistics, 30) + " · " + biomass.shorten(panel.correction, 30),
    beyond: panel.beyond ? " " + panel.beyond + (panel.beyond > 1 ? " wells lie" : " well lies") + " farther out, at the border" : "",
    x: biomass.unpack(panel.x, Uint16Array),
    y: biomass.unpack(panel.y, Uint16Array),
  }));
  const count = panels[0].x.length;
  const dot = count < 800 ? 3.6 : count < 4000 ? 2.6 : count < 12000 ? 1.9 : 1.5;
  // many plates are many shades: their experiments say more at first sight
  const first = data.choices.find((one) => fields[one].values.length <= 12);
  let role = data.choices[0] === "plate" && first === "experiment" ? first : data.choices[0], only = -1, marked = -1, colors = [], sprites = [], order = [];

  // Colours of a role's categories: along a scale where they follow each other, else the commonest have their own.
  function recolor() {
    const field = fields[role], sizes = new Array(field.values.length).fill(0);
    for (const code of field.codes) if (code !== missing) sizes[code]++;
    field.sizes = sizes;
    const known = field.values.map((_, i) => i).filter((i) => field.values[i] !== "");
    colors = new Array(field.values.length).fill(biomass.missing);
    if (data.ordered.includes(role) || known.length <= 8) {
      const scale = biomass.categories(known.length);
      known.forEach((code, i) => (colors[code] = scale[i]));
    } else {
      const common = [...known].sort((a, b) => sizes[b] - sizes[a]).slice(0, most);
      common.forEach((code, i) => (colors[code] = biomass.okabe[i]));
    }
    if (role === "control") {
      const grey = field.values.indexOf("treated");
      if (grey >= 0) colors[grey] = "#bdbdbd";
    }
    paint();
  }

  // Who is drawn last lies on top: what is grey comes first.
  function paint() {
    const codes = fields[role].codes;
    const shown = colors.map((color, code) => (only < 0 || only === code ? (only === code && color === biomass.missing ? "#000000" : color) : biomass.missing));
    const scale = Math.max(1, window.devicePixelRatio || 1), size = Math.ceil(2 * dot + 3);
    const made = new Map();
    sprites = [...shown, biomass.missing].map((color) => {
      if (!made.has(color)) {
        const sprite = biomass.element("canvas", { width: size * scale, height: size * scale });
        const context = sprite.getContext("2d");
        context.scale(scale, scale);
        context.beginPath();
        context.arc(size / 2, size / 2, dot, 0, 2 * Math.PI);
        context.globalAlpha = color === biomass.missing ? 0.55 : 0.85;
        context.fillStyle = color;
        context.fill();
        made.set(color, sprite);
      }
      return made.get(color);
    });
    sprites.size = size;
    const grey = (i) => codes[i] === missing || shown[codes[i]] === biomass.missing || shown[codes[i]] === "#bdbdbd";
    const all = Array.from({ length: count }, (_, i) => (i * 7919) % count); // mixed, so that no plate covers another
    const once = count % 7919 === 0 ? Array.from({ length: count }, (_, i) => i) : all;
    order = [...once.filter(grey), ...once.filter((i) => !grey(i))];
    for (const panel of panels) if (panel.redraw) panel.redraw();
    legend();
  }

  function draw(panel, context, side) {
    const room = side - 2 * edge, codes = fields[role].codes, half = sprites.size / 2;
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, side, side);
    for (const i of order) {
      if (panel.x[i] === missing) continue;
      const code = codes[i] === missing ? sprites.length - 1 : codes[i];
      const x = edge + (panel.x[i] / 65534) * room, y = side - edge - (panel.y[i] / 65534) * room;
      context.drawImage(sprites[code], x - half, y - half, sprites.size, sprites.size);
    }
    panel.side = side;
    grid(panel);
  }

  // Wells by squares of a grid, to find the nearest one to the pointer without looking at all.
  const cells = 64;
  function grid(panel) {
    if (panel.grid) return;
    panel.grid = new Map();
    for (let i = 0; i < count; i++) {
      if (panel.x[i] === missing) continue;
      const key = (panel.x[i] >> 10) * cells + (panel.y[i] >> 10);
      if (!panel.grid.has(key)) panel.grid.set(key, []);
      panel.grid.get(key).push(i);
    }
  }

  function nearest(panel, x, y) {
    const room = panel.side - 2 * edge;
    const u = ((x - edge) / room) * 65534, v = ((panel.side - edge - y) / room) * 65534;
    let best = -1, least = ((dot + 6) / room) * 65534;
    least *= least;
    for (let i = (u >> 10) - 2; i <= (u >> 10) + 2; i++) {
      for (let j = (v >> 10) - 2; j <= (v >> 10) + 2; j++) {
        for (const one of panel.grid.get(i * cells + j) || []) {
          const distance = (panel.x[one] - u) ** 2 + (panel.y[one] - v) ** 2;
          if (distance < least) [best, least] = [one, distance];
        }
      }
    }
    return best;
  }

  function mark(well) {
    marked = well;
    for (const panel of panels) {
      const ring = panel.ring;
      if (well < 0 || panel.x[well] === missing) {
        ring.style.display = "none";
        continue;
      }
      const room = panel.side - 2 * edge;
      ring.style.display = "block";
      ring.style.left = edge + (panel.x[well] / 65534) * room + "px";
      ring.style.top = panel.side - edge - (panel.y[well] / 65534) * room + "px";
    }
  }

  const says = { plate: "plate", experiment: "experiment", source: "source", well: "well", treatment: "treatment", compound: "compound", mechanism: "mechanism", control: "" };
  function describe(well) {
    const lines = [];
    for (const [key, label] of Object.entries(says)) {
      const field = fields[key];
      if (!field || field.codes[well] === missing) continue;
      const value = field.values[field.codes[well]];
      if (value && !(key === "compound" && lines.includes("treatment: " + value))) lines.push(label ? label + ": " + value : value);
    }
    return lines;
  }

  const hint = biomass.element("p", { class: "quiet" });
  const said = biomass.element("p", { class: "printed" }); // on paper there is no choice to read it from
  const list = biomass.element("ul", { class: "categories", "aria-label": "legend" });
  function legend() {
    const field = fields[role], codes = field.values.map((_, i) => i);
    said.textContent = "Coloured by " + role + ":";
    const nominal = !data.ordered.includes(role);
    if (nominal) codes.sort((a, b) => field.sizes[b] - field.sizes[a]);
    const few = nominal && colors.includes(biomass.missing) && field.values.length > 8;
    hint.textContent = few ? "The commonest " + most + " have a colour. Press any name to see it alone." : "Press a name to see it alone.";
    list.replaceChildren(
      ...codes.filter((code) => field.sizes[code]).map((code) => {
        const swatch = biomass.element("i", { "aria-hidden": "true" });
        swatch.style.background = colors[code];
        const button = biomass.element(
          "button",
          {
            type: "button",
            "aria-pressed": String(only === code),
            title: field.values[code],
            onclick: () => {
              only = only === code ? -1 : code;
              paint();
              const again = list.querySelector('[data-code="' + code + '"]');
              if (again) again.focus();
            },
            "data-code": code,
          },
          swatch,
          biomass.element("bdi", {}, biomass.shorten(field.values[code] || "(none)", 28)),
          biomass.element("span", { class: "quiet" }, " " + field.sizes[code]),
        );
        return biomass.element("li", {}, button);
      }),
    );
  }

  const choose = biomass.select("colour by", data.choices.map((one) => [one, one]), (value) => {
    [role, only] = [value, -1];
    recolor();
  });
  choose.querySelector("select").value = role;
  const across = panels.length < 3 ? 2 : panels.length === 4 ? 4 : 3;
  const holder = biomass.element("div", { class: "panels maps", style: "--across: " + across });
  element.append(biomass.element("div", { class: "controls" }, choose), said, list, hint, holder);
  recolor();
  for (const panel of panels) {
    const place = biomass.element("div", { class: "plot" });
    holder.append(biomass.element("figure", {}, biomass.element("figcaption", {}, panel.title, biomass.element("span", { class: "quiet" }, panel.beyond)), place));
    panel.ring = biomass.element("span", { class: "ring", "aria-hidden": "true" });
    const made = biomass.canvas(place, 1, "map of the wells: " + panel.title, (context, side) => draw(panel, context, side));
    place.append(panel.ring);
    panel.redraw = made.redraw;
    const point = (event) => {
      const box = made.canvas.getBoundingClientRect();
      const well = nearest(panel, event.clientX - box.left, event.clientY - box.top);
      if (well !== marked) mark(well);
      if (well < 0) biomass.tooltip.hide();
      else biomass.tooltip.show(event, describe(well));
    };
    made.canvas.addEventListener("pointermove", point);
    made.canvas.addEventListener("pointerdown", point); // a tap
    made.canvas.addEventListener("pointerleave", () => {
      mark(-1);
      biomass.tooltip.hide();
    });
  }
};
