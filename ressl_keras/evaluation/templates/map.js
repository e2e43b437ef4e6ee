"use strict";
// The map of a report: points or pictures, to hover, zoom and move. Names are text only.
(() => {
  const explorer = document.getElementById("explorer");
  if (!explorer) return;
  const data = JSON.parse(document.getElementById("map-data").textContent);
  const sheet = document.getElementById("sheet");
  const canvas = explorer.querySelector("canvas.map");
  const tip = explorer.querySelector(".tip");
  const pictures = document.getElementById("as-pictures");
  const classes = new Map(data.classes.map(each => [each.label, each]));
  const chosen = new Set();
  const MARGIN = 40, NEAR = 14;
  let zoom = 1, left = 0, top = 0, width = 0, height = 0;  // left, top: in map units
  let shown = null, drag = null;

  // From the map, 0 to 1, to pixels of the canvas and back.
  const spanX = () => (width - 2 * MARGIN) * zoom;
  const spanY = () => (height - 2 * MARGIN) * zoom;
  const place = i => [
    MARGIN + (data.x[i] / 1e4 - left) * spanX(),
    MARGIN + (data.y[i] / 1e4 - top) * spanY(),
  ];
  // Colours are those of the legend, which the page's style adapts to dark screens.
  const colour = i => {
    const own = data.labels && classes.get(data.labels[i]);
    if (!own || !own.colour) return getComputedStyle(canvas).color;
    own.ink ??= explorer.querySelector(`[data-label="${own.label}"] i`);
    return getComputedStyle(own.ink).color;
  };
  // Neighbours in the data set are of one class: the order in which room is given.
  const scrambled = i => (i * 2654435761) % 4294967296;
  const faded = i => chosen.size > 0 && !chosen.has(data.labels[i]);
  const side = () => (width < 600 ? 44 : 64);

  function cut(context, i, x, y, size) {
    const column = i % data.columns, row = Math.floor(i / data.columns);
    context.imageSmoothingEnabled = data.cell >= size / 2;
    context.drawImage(sheet, column * data.cell, row * data.cell, data.cell, data.cell,
      x, y, size, size);
  }

  function point(context, i, x, y, radius) {
    const own = data.labels ? classes.get(data.labels[i]) : null;
    context.fillStyle = colour(i);
    context.globalAlpha = faded(i) ? 0.1 : own && !own.colour && !chosen.size ? 0.5 : 0.9;
    context.beginPath();
    if (own && own.sign === "■") {
      context.rect(x - radius * 0.9, y - radius * 0.9, radius * 1.8, radius * 1.8);
    } else if (own && own.sign === "▲") {
      context.moveTo(x, y - radius * 1.2);
      context.lineTo(x + radius * 1.1, y + radius * 0.8);
      context.lineTo(x - radius * 1.1, y + radius * 0.8);
    } else {
      context.arc(x, y, radius, 0, 2 * Math.PI);
    }
    context.fill();
    context.globalAlpha = 1;
  }

  // Pictures where there is room, chosen classes first.
  function withRoom() {
    const size = side() + 4, taken = [], found = new Set();
    const order = [...data.x.keys()].sort(
      (a, b) => faded(a) - faded(b) || scrambled(a) - scrambled(b));
    for (const i of order) {
      const [x, y] = place(i);
      if (x < 0 || y < 0 || x > width || y > height) continue;
      if (taken.some(([u, v]) => Math.abs(u - x) < size && Math.abs(v - y) < size)) continue;
      taken.push([x, y]);
      found.add(i);
    }
    return found;
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    width = canvas.clientWidth;
    height = Math.round(Math.max(320, Math.min(width, 720)));
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const radius = Math.min(4 * Math.sqrt(Math.min(zoom, 4)), 7) * (width < 600 ? 0.8 : 1);
    const large = pictures.checked ? withRoom() : new Set();
    for (const i of data.x.keys()) {
      const [x, y] = place(i);
      if (!large.has(i)) point(context, i, x, y, large.size ? 2.5 : radius);
    }
    for (const i of large) {
      const [x, y] = place(i), size = side();
      context.globalAlpha = faded(i) ? 0.15 : 1;
      cut(context, i, x - size / 2, y - size / 2, size);
      const own = data.labels ? classes.get(data.labels[i]) : null;
      if (own && own.colour) {
        context.strokeStyle = colour(i);
        context.lineWidth = 3;
        context.strokeRect(x - size / 2, y - size / 2, size, size);
      }
      context.globalAlpha = 1;
    }
    if (shown !== null) {
      const [x, y] = place(shown);
      context.strokeStyle = getComputedStyle(canvas).color;
      context.lineWidth = 2;
      context.beginPath();
      context.arc(x, y, pictures.checked ? side() * 0.72 : radius + 4, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  function nearest(x, y) {
    let best = null, distance = pictures.checked ? side() / 2 : NEAR;
    for (const i of data.x.keys()) {
      if (faded(i)) continue;
      const [u, v] = place(i), d = Math.hypot(u - x, v - y);
      if (d < distance) [best, distance] = [i, d];
    }
    return best;
  }

  function tell(i) {
    if (i === shown) return;
    shown = i;
    tip.hidden = i === null;
    if (i !== null) {
      const picture = tip.querySelector("canvas"), [name, file] = tip.querySelectorAll("div");
      const context = picture.getContext("2d");
      context.clearRect(0, 0, picture.width, picture.height);
      cut(context, i, 0, 0, picture.width);
      const own = data.labels ? classes.get(data.labels[i]) : null;
      name.textContent = own ? own.name : "";
      file.textContent = data.files && data.files[i] ? data.files[i] : "";
      const [x, y] = place(i), beside = x + 200 > width ? x - 204 : x + 20;
      tip.style.left = `${Math.max(0, Math.min(beside, width - 186))}px`;
      tip.style.top = `${Math.max(0, Math.min(y - 90, height - tip.offsetHeight))}px`;
    }
    draw();
  }

  // The point under (x, y) stays where it is.
  function zoomBy(factor, x = width / 2, y = height / 2) {
    const u = left + (x - MARGIN) / spanX(), v = top + (y - MARGIN) / spanY();
    zoom = factor ? Math.max(1, Math.min(zoom * factor, 40)) : 1;
    left = u - (x - MARGIN) / spanX();
    top = v - (y - MARGIN) / spanY();
    moveBy(0, 0);
  }

  function moveBy(x, y) {
    const most = 1 - 1 / zoom;
    left = Math.max(0, Math.min(left - x / spanX(), most));
    top = Math.max(0, Math.min(top - y / spanY(), most));
    // A finger scrolls the page until there is something to move.
    canvas.style.touchAction = zoom > 1 ? "none" : "pan-y";
    tell(null);
    draw();
  }

  const at = event => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  canvas.addEventListener("pointerdown", event => {
    drag = [event.clientX, event.clientY];
    tell(nearest(...at(event)));
  });
  canvas.addEventListener("pointermove", event => {
    if (drag && event.buttons) {
      const [x, y] = [event.clientX - drag[0], event.clientY - drag[1]];
      if (Math.hypot(x, y) < 3) return;
      canvas.setPointerCapture(event.pointerId);
      drag = [event.clientX, event.clientY];
      moveBy(x, y);
    } else {
      tell(nearest(...at(event)));
    }
  });
  canvas.addEventListener("pointerup", () => { drag = null; });
  canvas.addEventListener("pointerleave", () => tell(null));
  canvas.addEventListener("dblclick", event => zoomBy(2, ...at(event)));
  canvas.addEventListener("wheel", event => {
    // Else the map would catch readers who scroll the page.
    if (!event.ctrlKey && document.activeElement !== canvas) return;
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY / 300), ...at(event));
  }, { passive: false });
  canvas.addEventListener("keydown", event => {
    const moves = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };
    if (event.key === "+" || event.key === "=") zoomBy(1.5);
    else if (event.key === "-") zoomBy(1 / 1.5);
    else if (event.key === "0") zoomBy(0);
    else if (moves[event.key] && zoom > 1) moveBy(...moves[event.key]);
    else return;
    event.preventDefault();
  });
  for (const button of explorer.querySelectorAll("[data-zoom]")) {
    button.addEventListener("click", () => zoomBy(Number(button.dataset.zoom)));
  }
  for (const button of explorer.querySelectorAll("[data-label]")) {
    button.addEventListener("click", () => {
      const label = Number(button.dataset.label);
      if (!chosen.delete(label)) chosen.add(label);
      button.setAttribute("aria-pressed", chosen.has(label));
      draw();
    });
  }
  pictures.addEventListener("change", draw);
  document.getElementById("still").hidden = true;
  explorer.hidden = false;
  pictures.checked = data.labels === null;
  new ResizeObserver(draw).observe(canvas.parentElement);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  sheet.decode().then(draw, draw);
})();
