"use strict";
// Maps of plates, each on a canvas of its own. Wells come as base64: place = row + 32 column + 2048 kind of control.
biomass.plate_maps = function (element, data) {
  const make = biomass.element;
  const place = biomass.unpack(data.place, Uint16Array);
  const wells = Array.from(place, (at) => ({ row: at & 31, column: (at >> 5) & 63, control: at >> 11 }));
  const treatment = data.treatment ? biomass.unpack(data.treatment.codes, Uint16Array) : null;
  const mechanism = data.mechanism ? biomass.unpack(data.mechanism.codes, Uint16Array) : null;
  const controls = ["treated", "negative control", "positive control"];
  const kindsThere = (data.controls ? [0, 1, 2] : []).filter((one) => wells.some((well) => well.control === one));
  const colours = ["#d9d9d9", "#0072b2", "#e69f00"]; // of the layout
  const levels = data.values.map((one) => biomass.unpack(one.levels, one.bytes === 1 ? Uint8Array : Uint16Array));
  const kinds = [...new Set(data.values.map((one) => one.kind))];
  const short = Object.fromEntries(data.values.map((one) => [one.kind, one.name]));
  const pairs = [...new Set(data.values.map((one) => one.pair))].filter((pair) => pair);
  let kind = kinds.includes("right") ? "right" : kinds[0] || "layout";
  let pair = pairs[0] || "";
  let order = "name";
  let marked = null; // a treatment
  let chosen = -1; // the number of the value that is drawn; -1: the layout

  function letters(row) {
    return row < 26 ? String.fromCharCode(65 + row) : "A" + String.fromCharCode(39 + row);
  }

  function wellName(well) {
    return letters(well.row) + String(well.column + 1).padStart(2, "0");
  }

  // The value of a well; null where it is not known.
  function valueOf(number, i) {
    const one = data.values[number];
    const top = one.bytes === 1 ? 255 : 65535;
    const level = levels[number][i];
    return level === top ? null : one.low + (level / (top - 1)) * (one.high - one.low);
  }

  function say(number, value) {
    const one = data.values[number];
    if (value === null) return "not known";
    if (one.kind === "right") return value > 0.99 ? "yes" : value < 0.01 ? "no" : biomass.number(value);
    if (one.kind === "cells") return String(Math.round(value));
    const beyond = value >= one.high ? "at least " : value <= one.low ? "at most " : "";
    return beyond + biomass.number(value, Math.abs(one.high) < 10 ? 2 : 1);
  }

  function mean(number, plate) {
    let sum = 0;
    let count = 0;
    for (let i = plate.first; i < plate.first + plate.count; i++) {
      const value = valueOf(number, i);
      if (value !== null) {
        sum += value;
        count += 1;
      }
    }
    return count ? sum / count : null;
  }

  function told(plate) {
    if (chosen < 0) {
      const counts = [0, 0, 0];
      for (let i = plate.first; i < plate.first + plate.count; i++) counts[wells[i].control] += 1;
      if (!data.controls) return plate.count + " wells";
      return kindsThere.map((one) => counts[one] + " " + controls[one].split(" ")[0]).join(", ");
    }
    const value = mean(chosen, plate);
    if (value === null) return "not known";
    if (kind === "right") return Math.round(100 * value) + " % right";
    return "mean " + biomass.number(value, value >= 10 ? 0 : 2);
  }

  // Where things are drawn: a margin for the names of rows and columns, and the side of a well.
  function layout(plate, width) {
    const margin = 16;
    return { margin, side: (width - margin - 1) / plate.columns };
  }

  function shape(context, kindOfControl, x, y, side) {
    const gap = side > 6 ? 0.6 : 0.25;
    context.beginPath();
    if (kindOfControl === 1) context.arc(x + side / 2, y + side / 2, side / 2 - gap, 0, 2 * Math.PI);
    else if (kindOfControl === 2) {
      context.moveTo(x + side / 2, y + gap);
      context.lineTo(x + side - gap, y + side - gap);
      context.lineTo(x + gap, y + side - gap);
      context.closePath();
    } else context.rect(x + gap, y + gap, side - 2 * gap, side - 2 * gap);
  }

  function draw(context, width, plate) {
    const { margin, side } = layout(plate, width);
    context.fillStyle = "#444";
    context.font = "9px sans-serif";
    context.textAlign = "center";
    const everyColumn = Math.ceil(14 / side);
    for (let c = 0; c < plate.columns; c += everyColumn)
      context.fillText(String(c + 1), margin + (c + 0.5) * side, margin - 5);
    const everyRow = Math.ceil(9 / side);
    for (let r = 0; r < plate.rows; r += everyRow) context.fillText(letters(r), margin / 2, margin + (r + 0.5) * side + 3);
    context.strokeStyle = "#999";
    context.lineWidth = 0.7;
    context.strokeRect(margin - 0.5, margin - 0.5, plate.columns * side + 1, plate.rows * side + 1);
    const one = data.values[chosen];
    for (let i = plate.first; i < plate.first + plate.count; i++) {
      const well = wells[i];
      const [x, y] = [margin + well.column * side, margin + well.row * side];
      const value = chosen < 0 ? null : valueOf(chosen, i);
      shape(context, well.control, x, y, side);
      if (chosen < 0 || value !== null) {
        context.fillStyle =
          chosen < 0 ? colours[well.control] : biomass.color((value - one.ends[0]) / (one.ends[1] - one.ends[0]), "cividis");
        context.fill();
      } else {
        context.strokeStyle = "#b0b0b0";
        context.lineWidth = 0.6;
        context.stroke();
      }
      if (treatment && treatment[i] === marked) {
        context.strokeStyle = "#d00000";
        context.lineWidth = Math.max(1.5, side / 6);
        context.strokeRect(x + 0.5, y + 0.5, side - 1, side - 1);
      }
    }
  }

  // The well under the pointer; -1: none.
  function under(event, canvas, plate) {
    const box = canvas.getBoundingClientRect();
    const { margin, side } = layout(plate, box.width);
    const column = Math.floor((event.clientX - box.left - margin) / side);
    const row = Math.floor((event.clientY - box.top - margin) / side);
    for (let i = plate.first; i < plate.first + plate.count; i++)
      if (wells[i].row === row && wells[i].column === column) return i;
    return -1;
  }

  function lines(i, plate) {
    const well = wells[i];
    const shown = [plate.name + ", " + wellName(well)];
    if (treatment) shown.push(data.treatment.values[treatment[i]]);
    if (mechanism) shown.push(data.mechanism.values[mechanism[i]]);
    if (well.control) shown.push(controls[well.control]);
    data.values.forEach((one, number) => {
      if (number === chosen || (one.kind === "cells" && !one.pair) || (one.pair === pair && pair))
        shown.push((one.kind === "right" ? "found again on another plate" : short[one.kind]) + ": " + say(number, valueOf(number, i)));
    });
    return shown.filter((line) => line);
  }

  const grid = make("div", { class: "plates" });
  grid.style.cssText = "display:grid;gap:.9em 1em;margin-top:.6em";
  const widest = Math.max(...data.plates.map((plate) => plate.columns));
  const least = widest <= 12 ? 130 : widest <= 24 ? 155 : 300; // width of a map
  const share = widest <= 12 ? 12 : widest <= 24 ? 18 : 30; // of the page
  grid.style.gridTemplateColumns = "repeat(auto-fill,minmax(min(100%,max(" + least + "px," + share + "%)),1fr))";
  const tiles = data.plates.map((plate) => {
    const title = make("bdi", { title: plate.name }, biomass.shorten(plate.name, 26));
    const words = make("div", {});
    const caption = make("figcaption", {}, title, words);
    caption.style.cssText = "font-size:.8em;line-height:1.25;white-space:nowrap;overflow:hidden;text-overflow:ellipsis";
    const tile = make("figure", {}, caption);
    tile.style.cssText = "margin:0;break-inside:avoid;min-width:0;max-width:660px";
    grid.append(tile);
    return { plate, tile, words, box: null };
  });

  const legend = make("div", {});
  const second = biomass.select(
    "before / after",
    pairs.map((one) => [one, one]),
    (value) => {
      pair = value;
      show();
    },
  );
  const options = [...kinds.map((one) => [one, short[one]]), ["layout", "layout: controls and treated wells"]];
  const first = biomass.select("Show", options, (value) => {
    kind = value;
    show();
  });
  first.querySelector("select").value = kind;
  const third = biomass.select(
    "order",
    [
      ["name", "by name"],
      ["odd", "most unlike the others first"],
      ["low", "lowest mean first"],
    ],
    (value) => {
      order = value;
      show();
    },
  );
  const hint = make("p", {}, treatment ? "Choose a well to outline all wells with its treatment." : "");
  element.append(make("div", { class: "controls" }, first, pairs.length ? second : null, third), legend, hint, grid);

  function sample(control, colour) {
    const drawn = [
      ["rect", { x: 2, y: 2, width: 10, height: 10 }],
      ["circle", { cx: 7, cy: 7, r: 5.5 }],
      ["path", { d: "M7 1L13 13H1Z" }],
    ][control];
    return biomass.svg(
      "svg",
      { width: 14, height: 14, viewBox: "0 0 14 14", "aria-hidden": "true" },
      biomass.svg(drawn[0], { ...drawn[1], fill: colour }),
    );
  }

  function showLegend() {
    legend.replaceChildren();
    legend.style.cssText = "display:flex;flex-wrap:wrap;gap:.2em 1.2em;align-items:center;margin-top:.4em";
    if (chosen >= 0) {
      const one = data.values[chosen];
      const [low, high] = one.ends.map((end) => (kind === "cells" ? String(Math.round(end)) : biomass.number(end)));
      const ends = kind === "right" ? ["no", "yes"] : ["≤ " + low, "≥ " + high];
      legend.append(biomass.colorbar("cividis", ends[0], ends[1], one.title + (one.pair ? " (" + one.pair + ")" : "")));
    }
    for (const control of kindsThere) {
      const colour = chosen < 0 ? colours[control] : "#666";
      legend.append(make("span", {}, sample(control, colour), " " + controls[control]));
    }
  }

  function show() {
    chosen = data.values.findIndex((one) => one.kind === kind && (one.pair === pair || !one.pair));
    second.hidden = chosen < 0 || !data.values[chosen].pair;
    const sorted = [...tiles];
    if (order === "odd") sorted.sort((a, b) => b.plate.odd - a.plate.odd);
    if (order === "low" && chosen >= 0) {
      const means = new Map(tiles.map((tile) => [tile, mean(chosen, tile.plate) ?? Infinity]));
      sorted.sort((a, b) => means.get(a) - means.get(b));
    }
    grid.append(...sorted.map((one) => one.tile));
    showLegend();
    for (const one of tiles) {
      one.words.textContent = told(one.plate);
      if (!one.box) {
        const { plate } = one;
        const ratio = (18 + plate.rows * layout(plate, least).side) / least;
        one.box = biomass.canvas(one.tile, ratio, "map of plate " + plate.name, (context, width) => draw(context, width, plate));
        const { canvas } = one.box;
        canvas.addEventListener("pointermove", (event) => {
          const i = under(event, canvas, plate);
          if (i < 0) biomass.tooltip.hide();
          else biomass.tooltip.show(event, lines(i, plate));
        });
        canvas.addEventListener("pointerleave", () => biomass.tooltip.hide());
        canvas.addEventListener("click", (event) => {
          const i = under(event, canvas, plate);
          marked = i < 0 || !treatment || treatment[i] === marked ? null : treatment[i];
          if (i >= 0) biomass.tooltip.show(event, lines(i, plate));
          tiles.forEach((tile) => tile.box.redraw());
        });
      } else one.box.redraw();
    }
  }

  show();
};
