/* Playback: one frame is shown everywhere; the video decides which one while it plays. */

(function start() {
  const find = id => document.getElementById(id);
  const motion = readMotion(find("motion").textContent);
  const video = find("video"), drawing = find("drawing"), sceneCanvas = find("scene");
  const scrubber = find("scrubber"), clock = find("clock"), playButton = find("play");
  const view = makeView(motion);
  const last = Math.max(0, motion.frames - 1);
  const steady = motion.frames < 2 || motion.times.every((t, i) => Math.abs(t * motion.fps - i) < 0.5);
  let theme = readTheme();
  let frame = 0, speed = 1, playing = false, seconds = 0, before = 0, hasVideo = false;
  let aim = 0, wanted = null, seeking = false, seekTimer = 0, dirty = true, person = 0;
  let drawCharts = () => {};

  document.querySelectorAll("[data-person]").forEach(badge => {
    badge.style.backgroundColor = css(motion.people[badge.dataset.person].colour);
  });
  const aspect = motion.size[0] / Math.max(1, motion.size[1]), stage = document.querySelector(".stage");
  stage.style.setProperty("--aspect", Math.min(2.4, Math.max(0.7, aspect)));
  stage.style.setProperty("--share", `${Math.min(1.45, Math.max(0.6, 0.8 * aspect))}fr`);
  scrubber.max = last;
  const drawTimelines = makeTimelines(find("timelines"), motion, goTo);
  if (!motion.people.length) { find("timeline-section").hidden = true; find("curve-section").hidden = true; }
  motion.people.forEach((one, index) => {
    const tab = element("button", find("tabs"), {type: "button", text: one.id, "aria-pressed": String(!index)});
    tab.addEventListener("click", () => choosePerson(index));
  });
  find("tabs").hidden = motion.people.length < 2;
  if (motion.people.length) choosePerson(0);

  function choosePerson(index) {
    person = index;
    drawCharts = makeCharts(find("charts"), motion, motion.people[index], goTo);
    [...find("tabs").children].forEach((tab, i) => tab.setAttribute("aria-pressed", String(i === index)));
    dirty = true;
  }

  /* The number of the frame in the video, and the time at which the video shows it. */
  const videoTime = index => (Math.min(index, motion.video.frames - 1) + 0.5) / motion.video.fps;
  const videoFrame = time => Math.min(last, Math.max(0, Math.round(time * motion.video.fps)));

  /* Show a frame in all views. */
  function show(index) {
    frame = Math.min(last, Math.max(0, index));
    if (playing) aim = frame;
    scrubber.value = frame;
    const now = motion.frames ? motion.times[frame] : 0;
    scrubber.setAttribute("aria-valuetext", `frame ${frame}, ${now.toFixed(2)} seconds`);
    clock.replaceChildren();
    element("b", clock, {text: `${now.toFixed(2)} s`});
    clock.append(` of ${motion.duration.toFixed(2)} s, frame ${frame}`);
    document.body.dataset.frame = frame;
    dirty = true;
  }

  /* Go to a frame: the views change when the video has arrived there. */
  function goTo(index) {
    const target = Math.min(last, Math.max(0, Math.round(index)));
    aim = target;
    seconds = motion.frames ? motion.times[target] : 0;
    if (!hasVideo) { show(target); return; }
    wanted = target;
    if (!seeking) seekVideo();
  }

  function seekVideo() {
    seeking = true;
    const target = wanted;
    wanted = null;
    const arrive = () => {
      clearTimeout(seekTimer);
      video.removeEventListener("seeked", arrive);
      seeking = false;
      show(target);
      if (wanted !== null) seekVideo();
    };
    video.addEventListener("seeked", arrive);
    seekTimer = setTimeout(arrive, 1500);  // a video that does not answer must not stop the rest
    video.currentTime = videoTime(target);
  }

  /* While the video plays, it tells which frame it shows. */
  function followVideo(now, facts) {
    if (playing && steady && hasVideo && !seeking) show(videoFrame(facts.mediaTime));
    if (playing) video.requestVideoFrameCallback(followVideo);
  }

  function setPlaying(on) {
    if (on === playing || !motion.frames) return;
    if (on && frame >= last) { goTo(0); frame = 0; }
    playing = on;
    before = performance.now();
    seconds = motion.times[frame];
    document.body.classList.toggle("playing", on);
    playButton.setAttribute("aria-label", on ? "Pause" : "Play");
    if (!hasVideo || !steady) return;
    if (on) {
      video.playbackRate = speed;
      const begun = video.play();
      if (begun) begun.catch(() => setPlaying(false));
      if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(followVideo);
    } else {
      video.pause();
      goTo(frame);
    }
  }

  function tick(now) {
    const passed = Math.min(0.25, (now - before) / 1000);
    before = now;
    if (playing && hasVideo && steady) {
      if (!video.requestVideoFrameCallback && !seeking) show(videoFrame(video.currentTime - 0.5 / motion.video.fps));
      if (video.ended) { setPlaying(false); goTo(last); }
    } else if (playing) {
      seconds += passed * speed;
      if (seconds >= motion.duration) { setPlaying(false); goTo(last); }
      else {
        const target = frameAt(motion.times, seconds);
        if (target !== frame && (!hasVideo || !seeking)) { const at = seconds; goTo(target); seconds = at; }
      }
    }
    if (turn) stepTurn(now);
    if (dirty) draw();
    requestAnimationFrame(tick);
  }

  function draw() {
    dirty = false;
    drawScene(sceneCanvas, motion, view, frame, theme);
    if (!drawing.hidden) drawImageJoints(drawing, motion, frame, theme, hasVideo);
    drawTimelines(frame, theme);
    drawCharts(frame, theme);
  }

  /* The video in the page, if the browser can play it. */
  const encoded = find("video-data").textContent;
  if (motion.video && encoded) {
    const raw = atob(encoded), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    video.src = URL.createObjectURL(new Blob([bytes], {type: "video/webm"}));
    video.addEventListener("loadeddata", () => {
      hasVideo = true;
      video.hidden = false; drawing.hidden = !motion.video.soft;
      drawing.classList.toggle("over", motion.video.soft);
      find("source-caption").textContent = "The video with the 2D joints that were found";
      document.body.dataset.video = "ready";
      goTo(frame);
    }, {once: true});
    video.addEventListener("error", () => {
      hasVideo = false; video.hidden = true; drawing.hidden = false; dirty = true;
      document.body.dataset.video = "failed";
    });
    video.load();
  }

  /* Views of the 3D scene. */
  const STILL = matchMedia("(prefers-reduced-motion: reduce)");
  const VIEWS = {free: [-0.55, 0.24], front: [0, 0.06], side: [-Math.PI / 2, 0.06], top: [0, Math.PI / 2 - 0.001]};
  let turn = null;
  function press(name) {
    document.querySelectorAll("[data-view]").forEach(b => b.setAttribute("aria-pressed", String(b.dataset.view === name)));
    document.body.dataset.azimuth = view.azimuth.toFixed(3);
    document.body.dataset.zoom = view.zoom.toFixed(3);
  }
  function chooseView(name) {
    const [azimuth, elevation] = VIEWS[name];
    const whole = 2 * Math.PI, from = ((view.azimuth + Math.PI) % whole + whole) % whole - Math.PI;
    turn = {from: [from, view.elevation, view.zoom], to: [azimuth, elevation, 1], began: performance.now()};
    if (STILL.matches) turn.began = -1e9;
    press(name);
  }
  function stepTurn(now) {
    const share = Math.min(1, Math.max(0, (now - turn.began) / 380)), ease = share * share * (3 - 2 * share);
    [view.azimuth, view.elevation, view.zoom] = turn.from.map((x, k) => x + (turn.to[k] - x) * ease);
    if (share >= 1) { turn = null; document.body.dataset.azimuth = view.azimuth.toFixed(3); }
    dirty = true;
  }
  document.querySelectorAll("[data-view]").forEach(b => b.addEventListener("click", () => chooseView(b.dataset.view)));
  const follow = find("follow");
  const setFollow = on => { view.follow = on; follow.setAttribute("aria-pressed", String(on)); dirty = true; };
  follow.addEventListener("click", () => setFollow(!view.follow));
  setFollow(view.follow);

  function turnBy(dx, dy) {
    turn = null;
    view.azimuth -= dx;
    view.elevation = Math.min(Math.PI / 2 - 0.001, Math.max(-0.15, view.elevation + dy));
    press("");
    dirty = true;
  }
  function zoomBy(factor) {
    const zoom = Math.min(3, Math.max(0.2, view.zoom * factor));
    const changed = zoom !== view.zoom;
    view.zoom = zoom;
    document.body.dataset.zoom = zoom.toFixed(3);
    dirty = true;
    return changed;
  }
  const pointers = new Map();
  sceneCanvas.addEventListener("pointerdown", event => {
    sceneCanvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, [event.clientX, event.clientY]);
    sceneCanvas.classList.add("turning");
  });
  sceneCanvas.addEventListener("pointermove", event => {
    const old = pointers.get(event.pointerId);
    if (!old) return;
    const now = [event.clientX, event.clientY], move = [now[0] - old[0], now[1] - old[1]];
    if (pointers.size === 1) turnBy(-move[0] * 0.008, move[1] * 0.006);
    else {
      const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
      const gap = p => Math.hypot(p[0] - other[0], p[1] - other[1]);
      if (gap(now) > 5) zoomBy(gap(old) / gap(now));
      turnBy(0, move[1] * 0.003);
    }
    pointers.set(event.pointerId, now);
  });
  for (const name of ["pointerup", "pointercancel"]) sceneCanvas.addEventListener(name, event => {
    pointers.delete(event.pointerId);
    if (!pointers.size) sceneCanvas.classList.remove("turning");
  });
  sceneCanvas.addEventListener("wheel", event => {
    const lines = event.deltaMode ? 16 : 1;
    if (zoomBy(Math.exp(Math.max(-60, Math.min(60, event.deltaY * lines)) * 0.0022))) event.preventDefault();
  }, {passive: false});

  /* Buttons and keys. */
  playButton.addEventListener("click", () => setPlaying(!playing));
  const step = by => { setPlaying(false); goTo(aim + by); };
  find("back").addEventListener("click", () => step(-1));
  find("forward").addEventListener("click", () => step(1));
  scrubber.addEventListener("input", () => {
    if (playing && hasVideo && steady) setPlaying(false);
    goTo(Number(scrubber.value));
  });
  document.querySelectorAll("[data-speed]").forEach(button => button.addEventListener("click", () => {
    speed = Number(button.dataset.speed);
    video.playbackRate = speed;
    document.querySelectorAll("[data-speed]").forEach(b => b.setAttribute("aria-pressed", String(b === button)));
  }));
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const turns = {ArrowLeft: [-0.12, 0], ArrowRight: [0.12, 0], ArrowUp: [0, 0.08], ArrowDown: [0, -0.08]};
    const keys = {ArrowLeft: () => step(-1), ArrowRight: () => step(1), Home: () => step(-Infinity), End: () => step(Infinity)};
    if (event.shiftKey && turns[event.key]) turnBy(...turns[event.key]);
    else if (event.key === " " && !event.target.closest("button, a, summary")) setPlaying(!playing);
    else if (keys[event.key] && !event.shiftKey) keys[event.key]();
    else return;
    event.preventDefault();
  });

  new ResizeObserver(() => { dirty = true; }).observe(document.body);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { theme = readTheme(); dirty = true; });
  addEventListener("resize", () => { dirty = true; });
  press("free");
  show(0);
  requestAnimationFrame(tick);
})();
