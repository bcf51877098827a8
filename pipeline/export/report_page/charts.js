/* Curves over time: scores, joint angles, speed and feet of a person. A click seeks. */

const CURVES = [
  {title: "Knees", note: "0° straight, 90° a right angle", keys: ["left knee", "right knee"], unit: "°", top: 120},
  {title: "Hips", note: "0° standing, 90° sitting", keys: ["left hip", "right hip"], unit: "°", top: 90},
  {title: "Elbows", note: "0° straight, 90° a right angle", keys: ["left elbow", "right elbow"], unit: "°", top: 120},
  {title: "Shoulders", note: "0° arm hangs, 180° arm up", keys: ["left shoulder", "right shoulder"], unit: "°", top: 90},
];

/* Number of the frame that is shown at a time: the last one that has begun. */
function frameAt(times, seconds) {
  let low = 0, high = times.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (times[middle] <= seconds + 1e-9) low = middle; else high = middle - 1;
  }
  return low;
}

function xOf(motion, frame, box) {
  return box.x + (motion.duration ? motion.times[frame] / motion.duration : 0.5) * box.width;
}

/* Shade what is not there, filled in or unsure; `strength` makes it fainter behind curves. */
function drawStatus(context, motion, person, box, theme, strength) {
  const kind = t => (person.status[t] === MISSING ? 1 : person.status[t] === FILLED ? 2 : person.isUnsure[t] ? 3 : 0);
  for (let t = 0; t < motion.frames;) {
    let end = t;
    while (end + 1 < motion.frames && kind(end + 1) === kind(t)) end++;
    const x = xOf(motion, t, box), next = xOf(motion, Math.min(end + 1, motion.frames - 1), box);
    const width = Math.max(2, next - x);
    if (kind(t)) {
      context.save();
      context.beginPath(); context.rect(x, box.y, width, box.height); context.clip();
      context.globalAlpha = strength;
      if (kind(t) === 1) { context.fillStyle = theme.sunken; context.fillRect(x, box.y, width, box.height); }
      if (kind(t) === 3) { context.fillStyle = theme.unsure; context.globalAlpha = 0.55 * strength; context.fillRect(x, box.y, width, box.height); }
      if (kind(t) === 2) {
        context.strokeStyle = theme.soft; context.lineWidth = 1.5; context.globalAlpha = 0.6 * strength;
        context.beginPath();
        for (let k = x - box.height; k < x + width; k += 6) { context.moveTo(k, box.y + box.height); context.lineTo(k + box.height, box.y); }
        context.stroke();
      }
      context.restore();
    }
    t = end + 1;
  }
}

function drawCurve(context, motion, values, box, top, style) {
  const path = new Path2D();
  let pen = false;
  for (let t = 0; t < motion.frames; t++) {
    if (!isFinite(values[t])) { pen = false; continue; }
    const x = xOf(motion, t, box), y = box.y + box.height * (1 - values[t] / top);
    pen ? path.lineTo(x, y) : path.moveTo(x, y);
    pen = true;
  }
  context.strokeStyle = style.colour; context.lineWidth = 2; context.lineJoin = "round";
  context.setLineDash(style.dash || []);
  context.stroke(path);
  context.setLineDash([]);
}

function drawCursor(context, motion, frame, box, theme) {
  const x = xOf(motion, frame, box);
  context.strokeStyle = theme.accent; context.lineWidth = 2;
  context.beginPath(); context.moveTo(x, box.y); context.lineTo(x, box.y + box.height); context.stroke();
}

function drawAxis(context, motion, box, top, unit, theme) {
  context.font = "11px system-ui, sans-serif"; context.fillStyle = theme.soft; context.strokeStyle = theme.line;
  context.lineWidth = 1; context.textAlign = "right"; context.textBaseline = "middle";
  for (const share of [0, 0.5, 1]) {
    const y = box.y + box.height * (1 - share), value = top * share;
    context.beginPath(); context.moveTo(box.x, y); context.lineTo(box.x + box.width, y); context.stroke();
    context.fillText(`${+value.toFixed(1)}${unit}`, box.x - 6, y);
  }
  context.textBaseline = "top";
  for (const [share, align] of [[0, "left"], [1, "right"]]) {
    context.textAlign = align;
    context.fillText(`${(motion.duration * share).toFixed(1)} s`, box.x + box.width * share, box.y + box.height + 4);
  }
}

function element(name, parent, options = {}) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(options)) {
    if (key === "text") made.textContent = value; else made.setAttribute(key, value);
  }
  parent.append(made);
  return made;
}

/* Clicks and drags on a chart call `seek` with a frame. */
function seekOnClick(canvas, motion, box, seek) {
  const go = event => {
    const place = canvas.getBoundingClientRect(), area = box(place.width, place.height);
    const share = Math.min(1, Math.max(0, (event.clientX - place.left - area.x) / area.width));
    const seconds = share * motion.duration;
    let frame = frameAt(motion.times, seconds);
    if (frame + 1 < motion.frames && motion.times[frame + 1] - seconds < seconds - motion.times[frame]) frame++;
    seek(frame);
  };
  canvas.addEventListener("pointerdown", event => { canvas.setPointerCapture(event.pointerId); go(event); });
  canvas.addEventListener("pointermove", event => { if (event.buttons) go(event); });
}

const BOX = (width, height) => ({x: 38, y: 6, width: width - 46, height: height - 26});
const STRIP = (width, height) => ({x: 6, y: 5, width: width - 12, height: height - 10});

/* One strip per person with its scores; returns what draws them all. */
function makeTimelines(place, motion, seek) {
  const strips = motion.people.map(person => {
    const row = element("div", place, {class: "track"}), label = element("div", row);
    const badge = element("span", label, {class: "badge", text: person.id});
    badge.style.backgroundColor = css(person.colour);
    const count = status => person.status.filter(s => s === status).length;
    element("small", label, {text: `${count(SEEN)} of ${motion.frames} frames`});
    const canvas = element("canvas", row, {role: "img", "aria-label": `Scores of ${person.id} over time`});
    seekOnClick(canvas, motion, STRIP, seek);
    return {canvas, person};
  });
  return (frame, theme) => {
    for (const {canvas, person} of strips) {
      const {context, width, height} = fitCanvas(canvas), box = STRIP(width, height);
      drawStatus(context, motion, person, box, theme, 1);
      drawCurve(context, motion, person.mean, box, 1, {colour: css(person.colour)});
      drawCursor(context, motion, frame, {...box, y: 0, height}, theme);
    }
  };
}

/* The charts of the person that is chosen; returns what draws them. */
function makeCharts(place, motion, person, seek) {
  place.replaceChildren();
  const left = css(mix([0, 0, 0], person.colour, LEFT_SHADE)), right = css(person.colour);
  const charts = [];
  const add = (title, note, series, unit, least, digits) => {
    const known = series.filter(s => s.values);
    if (!known.length) return;
    const card = element("article", place, {class: "chart"});
    const now = element("span", card, {class: "now"});
    element("h3", card, {text: title});
    element("p", card, {text: note});
    const canvas = element("canvas", card, {role: "img", "aria-label": `${title} of ${person.id} over time, ${note}`});
    let top = least;
    for (const s of known) for (const v of s.values) if (v > top) top = v;
    top = unit === "°" ? Math.ceil(top / 30) * 30 : Math.ceil(top * 2) / 2;
    seekOnClick(canvas, motion, BOX, seek);
    charts.push((frame, theme) => {
      const {context, width, height} = fitCanvas(canvas), box = BOX(width, height);
      drawStatus(context, motion, person, box, theme, 0.75);
      drawAxis(context, motion, box, top, unit === "°" ? "°" : "", theme);
      for (const s of known) drawCurve(context, motion, s.values, box, top, s);
      drawCursor(context, motion, frame, box, theme);
      const text = s => (isFinite(s.values[frame]) ? s.values[frame].toFixed(digits) + unit : "–");
      now.textContent = known.map(s => (s.name ? `${s.name} ${text(s)}` : text(s))).join("   ");
    });
  };
  for (const curve of CURVES) {
    const series = curve.keys.map((key, k) => ({
      name: key.split(" ")[0], values: person.angles[key],
      colour: k ? right : left, dash: k ? [] : [7, 4],
    }));
    add(curve.title, `${curve.note}; left dashed`, series, curve.unit, curve.top, 0);
  }
  add("Speed", "along the floor, metres per second", [{name: "", values: person.speed, colour: right}], " m/s", 1, 2);
  if (person.contacts.length) charts.push(addFeet(place, motion, person, [left, right], seek));
  return (frame, theme) => charts.forEach(draw => draw(frame, theme));
}

/* Bars of the times in which the feet stand, with how far they slide. */
function addFeet(place, motion, person, colours, seek) {
  const card = element("article", place, {class: "chart"});
  const now = element("span", card, {class: "now"});
  element("h3", card, {text: "Feet on the floor"});
  element("p", card, {text: "bars: the foot stands; number: how many cm it slides"});
  const canvas = element("canvas", card, {role: "img", "aria-label": `Times in which the feet of ${person.id} stand on the floor`});
  seekOnClick(canvas, motion, BOX, seek);
  return (frame, theme) => {
    const {context, width, height} = fitCanvas(canvas), box = BOX(width, height);
    drawStatus(context, motion, person, box, theme, 0.75);
    context.font = "11px system-ui, sans-serif"; context.textBaseline = "middle";
    ["left", "right"].forEach((side, row) => {
      const y = box.y + box.height * (0.08 + 0.5 * row), tall = 0.34 * box.height;
      context.fillStyle = theme.soft; context.textAlign = "right";
      context.fillText(side, box.x - 6, y + tall / 2);
      for (const [foot, first, last, slide] of person.contacts) {
        if (foot !== side) continue;
        const x = xOf(motion, first, box), wide = Math.max(3, xOf(motion, last, box) - x);
        context.fillStyle = colours[row];
        context.beginPath(); context.roundRect(x, y, wide, tall, Math.min(5, wide / 2)); context.fill();
        const text = String(Math.round(slide / 10));
        if (wide > 8 * text.length + 4) {
          context.fillStyle = "#fff"; context.textAlign = "center";
          context.fillText(text, x + wide / 2, y + tall / 2 + 0.5);
        }
      }
    });
    drawCursor(context, motion, frame, box, theme);
    now.textContent = ["left", "right"].map(side => {
      const stands = person.contacts.some(c => c[0] === side && c[1] <= frame && frame <= c[2]);
      return `${side} ${stands ? "stands" : "moves"}`;
    }).join("   ");
  };
}
