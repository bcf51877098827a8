"use strict";
/* The data of the page, the 3D view and the drawing of the 2D joints. Only canvas 2D is used. */

const MISSING = 0, SEEN = 1, FILLED = 2;

function readMotion(text) {
  const motion = JSON.parse(text);
  const decode = (base64, Kind) => {
    const raw = atob(base64), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new Kind(bytes.buffer);
  };
  const scaled = (base64, Kind, step, none) =>
    Float32Array.from(decode(base64, Kind), n => (n === none ? NaN : n * step));
  const J = motion.joints.length, U = motion.upright;
  motion.times = decode(motion.times, Float64Array);
  motion.duration = motion.frames ? motion.times[motion.frames - 1] : 0;
  motion.bones = motion.parents.map((parent, child) => [parent, child]).filter(bone => bone[0] >= 0);
  motion.isLeft = motion.joints.map((_, joint) => motion.left.includes(joint));
  for (const person of motion.people) {
    const relative = scaled(person.joints3d, Int16Array, 0.001, -32768);
    const root = scaled(person.root, Int32Array, 0.001, -2147483648);
    person.points = new Float32Array(relative.length);   // x right, y ahead, z up, metres
    for (let t = 0; t < motion.frames; t++) for (let j = 0; j < J; j++) {
      const at = 3 * (t * J + j);
      const p = [0, 1, 2].map(k => relative[at + k] + root[3 * t + k]);
      for (let k = 0; k < 3; k++) person.points[at + k] = U[k][0] * p[0] + U[k][1] * p[1] + U[k][2] * p[2];
    }
    person.joints2d = scaled(person.joints2d, Int16Array, motion.step2d, -32768);
    person.score = Float32Array.from(decode(person.score, Uint8Array), n => n / 255);
    person.status = decode(person.status, Uint8Array);
    person.isUnsure = new Uint8Array(motion.frames);
    for (const [first, last] of person.unsure) person.isUnsure.fill(1, first, last + 1);
    for (const name of Object.keys(person.angles)) person.angles[name] = scaled(person.angles[name], Int16Array, 0.1, -32768);
    person.speed = scaled(person.speed, Int16Array, 0.001, -32768);
    person.mean = Float32Array.from({length: motion.frames}, (_, t) => {
      if (person.status[t] !== SEEN) return NaN;
      let sum = 0;
      for (let j = 0; j < J; j++) sum += person.score[t * J + j];
      return sum / J;
    });
  }
  return motion;
}

const mix = (a, b, share) => a.map((x, i) => x + (b[i] - x) * share);
const css = c => `rgb(${c.map(Math.round).join(" ")})`;
const parseColour = text => {
  const hex = text.trim().replace("#", "");
  return [0, 2, 4].map(i => parseInt(hex.slice(i, i + 2), 16));
};
const LEFT_SHADE = 0.62;

function readTheme() {
  const style = getComputedStyle(document.documentElement);
  const get = name => style.getPropertyValue(name).trim();
  return {
    sky: parseColour(get("--sky")), ground: parseColour(get("--ground")), grid: parseColour(get("--grid")),
    ink: get("--ink"), soft: get("--soft"), line: get("--line"), sunken: get("--sunken"), panel: get("--panel"),
    unsure: get("--unsure"), shadow: get("--shadow"), accent: get("--accent"),
  };
}

/* Fit a canvas to its place on the screen; returns its context and size in CSS pixels. */
function fitCanvas(canvas) {
  const ratio = Math.min(window.devicePixelRatio || 1, 2.5);
  const width = canvas.clientWidth, height = canvas.clientHeight;
  const w = Math.max(1, Math.round(width * ratio)), h = Math.max(1, Math.round(height * ratio));
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return {context, width, height};
}

function drawBadge(context, text, x, y, fill, ring) {
  context.font = "650 13px system-ui, sans-serif";
  const shown = text.length > 12 ? text.slice(0, 11) + "…" : text;
  const width = Math.max(24, context.measureText(shown).width + 14);
  context.beginPath();
  context.roundRect(x - width / 2, y - 11, width, 22, 11);
  context.fillStyle = fill;
  context.fill();
  if (ring) { context.lineWidth = 2.5; context.strokeStyle = ring; context.stroke(); }
  context.fillStyle = "#fff";
  context.textAlign = "center"; context.textBaseline = "middle";
  context.fillText(shown, x, y + 0.5);
}

/* The 2D joints of a frame in a rectangle with the shape of the image, or over the video. */
function drawImageJoints(canvas, motion, frame, theme, isOver) {
  const {context, width, height} = fitCanvas(canvas);
  const [w, h] = motion.size, J = motion.joints.length;
  const edge = isOver ? 0 : 24, scale = Math.min((width - edge) / w, (height - edge) / h);
  const x0 = (width - w * scale) / 2, y0 = (height - h * scale) / 2;
  context.beginPath(); context.roundRect(x0, y0, w * scale, h * scale, isOver ? 0 : 8);
  context.fillStyle = isOver ? "transparent" : theme.sunken; context.fill();
  context.save(); context.clip();
  context.lineCap = "round";
  for (const person of motion.people) {
    if (person.status[frame] === MISSING) continue;
    const at = j => {
      const k = 2 * (frame * J + j);
      return [x0 + (person.joints2d[k] + 0.5) * scale, y0 + (person.joints2d[k + 1] + 0.5) * scale];
    };
    const all = motion.joints.map((_, j) => at(j)).filter(p => isFinite(p[0]));
    if (!all.length) continue;
    const tall = Math.max(...all.map(p => p[1])) - Math.min(...all.map(p => p[1]));
    context.lineWidth = Math.max(2, tall / 42);
    for (const [parent, child] of motion.bones) {
      const p = at(parent), q = at(child);
      if (!isFinite(p[0] + q[0])) continue;
      const score = Math.min(person.score[frame * J + parent], person.score[frame * J + child]);
      context.globalAlpha = person.status[frame] === FILLED ? 0.35 : 0.3 + 0.7 * score;
      context.strokeStyle = css(motion.isLeft[child] ? mix([0, 0, 0], person.colour, LEFT_SHADE) : person.colour);
      context.beginPath(); context.moveTo(...p); context.lineTo(...q); context.stroke();
    }
    context.globalAlpha = 1;
    const top = all.reduce((a, b) => (b[1] < a[1] ? b : a));
    drawBadge(context, person.id, top[0], Math.max(y0 + 14, top[1] - 20), css(person.colour),
      person.isUnsure[frame] ? theme.unsure : null);
  }
  context.restore();
}

/* Radii of the parts of a body, metres: bone that ends in the joint -> radius at its two ends. */
const RADII = {
  knee: [0.082, 0.058], ankle: [0.058, 0.04], elbow: [0.05, 0.042], wrist: [0.042, 0.031],
  hip: [0.1, 0.085], spine: [0.11, 0.11], thorax: [0.11, 0.075], shoulder: [0.07, 0.056], nose: [0.052, 0.05],
};
const ENDS = {wrist: 0.042, ankle: 0.047};

/* A camera that turns about the people; angles in radians, azimuth 0 looks as the real camera does. */
function makeView(motion) {
  const low = [Infinity, Infinity, Infinity], high = [-Infinity, -Infinity, -Infinity];
  for (const person of motion.people) for (let i = 0; i < person.points.length; i++) {
    const x = person.points[i];
    if (isFinite(x)) { low[i % 3] = Math.min(low[i % 3], x); high[i % 3] = Math.max(high[i % 3], x); }
  }
  if (!isFinite(low[0])) { low.fill(-1); high.fill(1); }
  low[2] = motion.floor; high[2] = Math.max(high[2], motion.floor + 1.9);
  for (const k of [0, 1]) {  // room around somebody who stands still
    const extra = Math.max(0, 1.5 - (high[k] - low[k])) / 2;
    low[k] -= extra; high[k] += extra;
  }
  const middle = low.map((x, k) => (x + high[k]) / 2);
  const J = motion.joints.length, root = Math.max(0, motion.parents.indexOf(-1));
  const rootOf = (person, t) => person.points.subarray(3 * (t * J + root), 3 * (t * J + root) + 3);
  let spread = 0;   // largest distance of people at one time
  for (let t = 0; t < motion.frames; t++) {
    const there = motion.people.filter(p => p.status[t] !== MISSING).map(p => rootOf(p, t));
    for (const k of [0, 1]) if (there.length) {
      spread = Math.max(spread, Math.max(...there.map(p => p[k])) - Math.min(...there.map(p => p[k])));
    }
  }
  const view = {azimuth: -0.55, elevation: 0.24, zoom: 1, follow: false, low, high, rootOf};
  const close = spread / 2 + 0.6;
  view.follow = Math.max(high[0] - low[0], high[1] - low[1]) > 2 * close + 4;
  const all = [];   // points that must be in the image: people in up to 60 frames
  for (let t = 0; t < motion.frames; t += Math.ceil(motion.frames / 60)) for (const person of motion.people) {
    const [x, y] = rootOf(person, t);
    if (isFinite(x)) for (const z of [motion.floor, high[2]]) all.push([x - 0.4, y, z], [x + 0.4, y, z], [x, y - 0.4, z], [x, y + 0.4, z]);
  }
  if (!all.length) for (const x of [-1, 1]) all.push([x, -1, motion.floor], [x, 1, high[2]]);
  const near = [-1, 1].flatMap(x => [-1, 1].flatMap(y => [low[2], high[2]].map(z => [x * close, y * close, z])));
  let centre = [middle[0], middle[1]];
  view.aim = frame => {
    if (!view.follow) return all;
    const there = motion.people.filter(p => p.status[frame] !== MISSING).map(p => rootOf(p, frame));
    if (there.length) centre = [0, 1].map(k => (Math.max(...there.map(p => p[k])) + Math.min(...there.map(p => p[k]))) / 2);
    return near.map(p => [p[0] + centre[0], p[1] + centre[1], p[2]]);
  };
  return view;
}

function makeProjection(view, frame, width, height) {
  const [sa, ca] = [Math.sin(view.azimuth), Math.cos(view.azimuth)];
  const [se, ce] = [Math.sin(view.elevation), Math.cos(view.elevation)];
  const forward = [sa * ce, ca * ce, -se], right = [ca, -sa, 0], up = [sa * se, ca * se, ce];
  const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
  const tall = Math.tan(0.28), wide = tall * width / height;
  const points = view.aim(frame), range = (axis, use) => use(...points.map(p => dot(p, axis)));
  // the middle of the points, then three corrections by what perspective shows
  const half = axis => (range(axis, Math.max) + range(axis, Math.min)) / 2;
  const middle = [half(right), half(up), half(forward)];
  const target = [0, 1, 2].map(k => middle[0] * right[k] + middle[1] * up[k] + middle[2] * forward[k]);
  let distance = 1;
  for (let round = 0; round < 4; round++) {
    const flat = points.map(p => {
      const q = [p[0] - target[0], p[1] - target[1], p[2] - target[2]];
      return [dot(q, right), dot(q, up), dot(q, forward)];
    });
    distance = Math.max(1, ...flat.map(q => 1.12 * Math.max(Math.abs(q[0]) / wide, Math.abs(q[1]) / tall) - q[2]));
    const shift = [0, 1].map(k => {
      const seen = flat.map(q => q[k] / (distance + q[2]));
      return distance * (Math.max(...seen) + Math.min(...seen)) / 2;
    });
    for (let k = 0; k < 3 && round < 3; k++) target[k] += shift[0] * right[k] + shift[1] * up[k];
  }
  distance *= view.zoom;
  const focal = height / 2 / tall, eye = target.map((x, k) => x - distance * forward[k]);
  const project = p => {
    const q = [p[0] - eye[0], p[1] - eye[1], p[2] - eye[2]], z = dot(q, forward);
    const scale = focal / Math.max(z, 0.05);
    return {x: width / 2 + scale * dot(q, right), y: height / 2 - scale * dot(q, up), z, scale};
  };
  return {project, distance};
}

/* Outline of two circles and the tangents between them, as a path. */
function addCapsule(path, p, q, r, s) {
  const dx = q.x - p.x, dy = q.y - p.y, d = Math.hypot(dx, dy);
  if (d <= Math.abs(r - s) + 0.01) {
    const big = r > s ? p : q;
    path.moveTo(big.x + Math.max(r, s), big.y);
    path.arc(big.x, big.y, Math.max(r, s), 0, 2 * Math.PI);
    return;
  }
  const along = Math.atan2(dy, dx), side = Math.acos((r - s) / d);
  path.moveTo(p.x + r * Math.cos(along + side), p.y + r * Math.sin(along + side));
  path.arc(p.x, p.y, r, along + side, along - side + 2 * Math.PI);
  path.arc(q.x, q.y, s, along - side, along + side);
  path.closePath();
}

function convexHull(points) {
  points.sort((a, b) => a.x - b.x || a.y - b.y);
  const half = list => {
    const hull = [];
    for (const p of list) {
      while (hull.length > 1) {
        const [a, b] = hull.slice(-2);
        if ((b.x - a.x) * (p.y - a.y) - (b.y - a.y) * (p.x - a.x) > 0) break;
        hull.pop();
      }
      hull.push(p);
    }
    return hull.slice(0, -1);
  };
  return [...half(points), ...half([...points].reverse())];
}

/* Parts of a body in a frame: capsules between points, balls, and the trunk. */
function bodyParts(motion, person, frame) {
  const J = motion.joints.length;
  const point = j => Array.from(person.points.subarray(3 * (frame * J + j), 3 * (frame * J + j) + 3));
  const named = Object.fromEntries(motion.joints.map((name, j) => [name, point(j)]));
  const parts = [];
  for (const [parent, child] of motion.bones) {
    const name = motion.joints[child].replace(/^(left|right)_/, "");
    const p = point(parent), q = point(child), left = motion.isLeft[child];
    if (!isFinite(p[0] + q[0]) || name === "head") continue;
    const [r, s] = RADII[name] || [0.035, 0.035];
    parts.push({kind: "capsule", p, q, r, s, left});
    if (ENDS[name]) parts.push({kind: "capsule", p: q, q, r: ENDS[name], s: ENDS[name], left});
  }
  const {nose, head, thorax, pelvis} = named;
  if (head && nose && isFinite(head[0] + nose[0])) {
    const centre = mix(nose, head, 0.42);
    parts.push({kind: "capsule", p: centre, q: centre, r: 0.115, s: 0.115});
    parts.push({kind: "capsule", p: mix(nose, centre, -0.2), q: nose, r: 0.018, s: 0.026});
  }
  const corners = ["left_shoulder", "right_shoulder", "right_hip", "left_hip"].map(n => named[n]);
  if (thorax && pelvis && corners.every(c => c && isFinite(c[0]))) {
    parts.push({kind: "trunk", p: thorax, q: pelvis, corners, radii: [0.07, 0.07, 0.09, 0.09]});
  }
  return parts;
}

function drawScene(canvas, motion, view, frame, theme) {
  const {context, width, height} = fitCanvas(canvas);
  const {project, distance} = makeProjection(view, frame, width, height);
  const sky = context.createLinearGradient(0, 0, 0, height);
  sky.addColorStop(0, css(theme.sky)); sky.addColorStop(1, css(theme.ground));
  context.fillStyle = sky; context.fillRect(0, 0, width, height);
  drawFloor(context, project, motion, view, theme);
  const there = motion.people.filter(person => person.status[frame] !== MISSING);
  const bodies = there.map(person => ({person, parts: bodyParts(motion, person, frame)}));
  for (const person of motion.people) drawPath(context, project, motion, view, person, frame);
  drawShadows(context, project, motion, bodies, theme);
  for (const {person, parts} of bodies) drawHeight(context, project, motion, view, person, parts, frame);
  const queue = [];
  for (const {person, parts} of bodies) for (const part of parts) {
    const p = project(part.p), q = project(part.q);
    if (Math.min(p.z, q.z) < 0.2) continue;
    const depth = (p.z + q.z) / 2 + (part.kind === "trunk" ? 0.02 : 0);
    queue.push({person, part, p, q, depth});
  }
  queue.sort((a, b) => b.depth - a.depth);
  for (const item of queue) drawPart(context, project, item, distance, frame, theme);
  const badges = [];
  for (const {person, parts} of bodies) {
    const tops = parts.map(part => project(part.q)).filter(p => p.z > 0.2);
    if (!tops.length) continue;
    const top = tops.reduce((a, b) => (b.y < a.y ? b : a));
    let y = Math.max(16, top.y - 0.15 * top.scale - 16);
    while (badges.some(b => Math.hypot(b[0] - top.x, b[1] - y) < 24)) y -= 6;
    badges.push([top.x, y]);
    drawBadge(context, person.id, top.x, y, css(person.colour), person.isUnsure[frame] ? theme.unsure : null);
  }
}

function drawFloor(context, project, motion, view, theme) {
  const reach = 2 + Math.ceil(Math.max(...[0, 1].map(k => (view.high[k] - view.low[k]) / 2)));
  const centre = [0, 1].map(k => (view.low[k] + view.high[k]) / 2);
  const [x0, x1] = [Math.floor(centre[0] - reach), Math.ceil(centre[0] + reach)];
  const [y0, y1] = [Math.floor(centre[1] - reach), Math.ceil(centre[1] + reach)];
  const step = Math.ceil(Math.max(x1 - x0, y1 - y0) / 40);  // a very long way gets a coarser grid
  const levels = Array.from({length: 6}, () => new Path2D());
  const add = (a, b) => {
    const p = project([...a, motion.floor]), q = project([...b, motion.floor]);
    if (p.z < 0.2 || q.z < 0.2) return;
    const away = Math.hypot((a[0] + b[0]) / 2 - centre[0], (a[1] + b[1]) / 2 - centre[1]) / reach;
    const level = Math.min(5, Math.floor(6 * Math.max(0, 1 - away)));
    levels[level].moveTo(p.x, p.y); levels[level].lineTo(q.x, q.y);
  };
  for (let x = x0; x <= x1; x += step) for (let y = y0; y < y1; y += step) add([x, y], [x, y + step]);
  for (let y = y0; y <= y1; y += step) for (let x = x0; x < x1; x += step) add([x, y], [x + step, y]);
  context.lineWidth = 1; context.strokeStyle = css(theme.grid);
  levels.forEach((path, level) => { context.globalAlpha = 0.1 + 0.13 * level; context.stroke(path); });
  context.globalAlpha = 1;
}

/* The way of a person along the floor: all of it faint, what is done so far strong. */
function drawPath(context, project, motion, view, person, frame) {
  const whole = new Path2D(), done = new Path2D();
  let pen = false;
  for (let t = 0; t < motion.frames; t++) {
    if (person.status[t] === MISSING) { pen = false; continue; }
    const root = view.rootOf(person, t), p = project([root[0], root[1], motion.floor]);
    if (!(p.z > 0.2)) { pen = false; continue; }
    for (const path of t <= frame ? [whole, done] : [whole]) pen ? path.lineTo(p.x, p.y) : path.moveTo(p.x, p.y);
    pen = true;
  }
  context.lineJoin = context.lineCap = "round";
  context.strokeStyle = css(person.colour); context.lineWidth = 2.5;
  context.globalAlpha = 0.22; context.stroke(whole);
  context.globalAlpha = 0.75; context.stroke(done);
  context.globalAlpha = 1;
}

/* A dotted line down to the floor, under somebody who stands or hangs above it. */
function drawHeight(context, project, motion, view, person, parts, frame) {
  const low = Math.min(...parts.map(part => Math.min(part.p[2], part.q[2])));
  if (!(low > motion.floor + 0.4)) return;
  const [x, y] = view.rootOf(person, frame), p = project([x, y, low]), q = project([x, y, motion.floor]);
  if (p.z < 0.2 || q.z < 0.2) return;
  context.strokeStyle = css(person.colour); context.lineWidth = 2; context.globalAlpha = 0.6;
  context.setLineDash([2, 6]);
  context.beginPath(); context.moveTo(p.x, p.y); context.lineTo(q.x, q.y); context.stroke();
  context.setLineDash([]);
  context.beginPath(); context.arc(q.x, q.y, 4, 0, 2 * Math.PI); context.stroke();
  context.globalAlpha = 1;
}

function drawShadows(context, project, motion, bodies, theme) {
  const path = new Path2D();
  for (const {parts} of bodies) for (const part of parts) {
    const onFloor = p => project([p[0] + 0.25 * (p[2] - motion.floor), p[1] + 0.18 * (p[2] - motion.floor), motion.floor]);
    if (part.kind === "trunk") {
      const corners = part.corners.map(onFloor), hull = convexHull(corners);
      if (hull.some(p => p.z < 0.2)) continue;
      hull.reverse().forEach((p, i) => (i ? path.lineTo(p.x, p.y) : path.moveTo(p.x, p.y)));
      path.closePath();
      continue;
    }
    const p = onFloor(part.p), q = onFloor(part.q);
    if (p.z > 0.2 && q.z > 0.2) addCapsule(path, p, q, 0.9 * part.r * p.scale, 0.9 * part.s * q.scale);
  }
  context.save();
  context.filter = "blur(3px)";
  context.fillStyle = theme.shadow;
  context.fill(path, "nonzero");
  context.restore();
}

function drawPart(context, project, {person, part, p, q, depth}, distance, frame, theme) {
  let colour = part.left ? mix([0, 0, 0], person.colour, LEFT_SHADE) : person.colour;
  if (person.status[frame] === FILLED) colour = mix(colour, theme.ground, 0.62);
  const haze = Math.min(0.4, Math.max(0, 0.25 * (depth / distance - 0.9)));
  colour = mix(colour, theme.ground, haze);
  const path = new Path2D();
  let middle = [(p.x + q.x) / 2, (p.y + q.y) / 2], radius;
  if (part.kind === "trunk") {
    const circles = part.corners.map((corner, i) => ({...project(corner), r: part.radii[i]}));
    const outline = [];
    for (const c of circles) for (let k = 0; k < 16; k++) {
      const angle = k * Math.PI / 8;
      outline.push({x: c.x + c.r * c.scale * Math.cos(angle), y: c.y + c.r * c.scale * Math.sin(angle)});
    }
    convexHull(outline).forEach((c, i) => (i ? path.lineTo(c.x, c.y) : path.moveTo(c.x, c.y)));
    path.closePath();
    radius = 0.24 * p.scale;
  } else {
    addCapsule(path, p, q, part.r * p.scale, part.s * q.scale);
    radius = Math.max(part.r * p.scale, part.s * q.scale);
  }
  const dx = q.x - p.x, dy = q.y - p.y, length = Math.hypot(dx, dy);
  let shade;
  if (length < 0.5 * radius) {
    shade = context.createRadialGradient(middle[0] - 0.4 * radius, middle[1] - 0.45 * radius, 0.1 * radius, ...middle, 1.05 * radius);
  } else {
    let nx = -dy / length, ny = dx / length;       // across the limb, turned towards the light
    if (nx * -0.55 + ny * -0.83 < 0) { nx = -nx; ny = -ny; }
    shade = context.createLinearGradient(middle[0] + nx * radius, middle[1] + ny * radius, middle[0] - nx * radius, middle[1] - ny * radius);
  }
  shade.addColorStop(0, css(mix(colour, [255, 255, 255], 0.36)));
  shade.addColorStop(0.42, css(colour));
  shade.addColorStop(1, css(mix(colour, [10, 12, 20], 0.42)));
  context.fillStyle = shade;
  context.fill(path);
  context.lineWidth = 1;
  context.strokeStyle = css(mix(colour, [10, 12, 20], 0.5));
  context.globalAlpha = 0.35;
  context.stroke(path);
  context.globalAlpha = 1;
}
